r"""
The closed form of a rank-one edit (ROME; "Knowledge in Superposition", equation 2).

$$\hat W = W + \Lambda (C^{-1} k_e)^T, \quad \Lambda = \frac{v_e - W k_e}{k_e^T C^{-1} k_e}$$

Axes: `m` inputs, `d` outputs of the matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..moments import Whitening, inputs_of
from .arguments import RankOneArguments
from .contexts import EditTexts
from .tail import Tail, rank_one
from .value import losses, optimise_value


@dataclass(frozen=True)
class Update:
    """
    One edit of one matrix: `right` times `left`, added to its weight.

    Args:
        layer (`int`), name (`str`): The layer, and its matrix.
        key (`torch.Tensor` of shape `(m,)`): The key that the new value is written to, exactly.
        value (`torch.Tensor` of shape `(d,)`): That value, without the matrix's bias.
        left (`torch.Tensor` of shape `(m,)`): $C^{-1}$ times the mean key over contexts, of unit norm: the row of LoRA's A.
        right (`torch.Tensor` of shape `(d,)`): $\\Lambda$ in that unit: the column of LoRA's B.
        delta (`float`): Norm of what the value changes by.
        change (`float`): $||W' - W|| / ||W||$, WilKE's score of the layer.
        nll (`float`): Mean cross-entropy of the target behind the bare prompt once the edit is made, in nats a token.
        success (`bool`): Whether the target is the greedy answer then.
        steps (`int`): Steps on the value.
    """

    layer: int
    name: str
    key: torch.Tensor
    value: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    delta: float
    change: float
    nll: float
    success: bool
    steps: int


@torch.no_grad()
def solve(
    root: PreTrainedModel,
    layer: int,
    name: str,
    texts: EditTexts,
    whitening: Whitening,
    arguments: RankOneArguments,
    weight_norm: float | None = None,
) -> Update:
    """The edit at one layer. Nothing of the model is changed."""
    keys = torch.zeros(len(texts.prompts), whitening.factor.shape[0], dtype=torch.double)
    for rows, (inputs,) in inputs_of(root, [name], [prompt.ids for prompt in texts.prompts]):
        for i, row in enumerate(rows):
            keys[row] = inputs[i, texts.prompts[row].column].double()
    tail = Tail(root, name, layer, texts)
    delta, steps = optimise_value(tail, arguments)
    mean = keys.mean(0)
    key = mean if arguments.key == "unified" else keys[0]
    left = whitening.solve(mean[None])[0]
    left = left / left.norm()
    right = delta.double().cpu() / (key @ left)
    found = tail.logits(rank_one(left.to(delta), right.to(delta)))
    own = tail.row == 0
    return Update(
        layer=layer,
        name=name,
        key=key.float(),
        value=(through(root.get_submodule(name), key) + delta.double().cpu()).float(),
        left=left.float(),
        right=right.float(),
        delta=delta.norm().item(),
        change=right.norm().item() / (weight_norm or norm_of(root.get_submodule(name))),
        nll=losses(tail, found)[0].item(),
        success=bool((found[:-1][own].argmax(-1) == tail.target[own]).all()),
        steps=steps,
    )


@torch.no_grad()
def through(matrix: nn.Module, key: torch.Tensor) -> torch.Tensor:
    """What a matrix, with what adapters add to it and without its bias, makes of a key; in double precision."""
    weight = weight_of(matrix).double().cpu()
    return weight @ key.double().cpu()


@torch.no_grad()
def weight_of(matrix: Any) -> torch.Tensor:
    """
    The weight of a linear map of shape `(d, m)`, with what LoRA adapters that are active add to it.

    Raises:
        ValueError: If it is quantised.
    """
    base = matrix.get_base_layer() if hasattr(matrix, "get_base_layer") else matrix
    weight: torch.Tensor = base.weight
    if not weight.is_floating_point():
        raise ValueError(
            f"Rank-one edits read the weight of {type(base).__name__}, which is quantised ({weight.dtype}). Load the model in "
            f"a floating-point dtype; the adapter that comes out can be put on the quantised model."
        )
    weight = weight.float()
    for adapter in getattr(matrix, "active_adapters", ()):
        if adapter in getattr(matrix, "lora_A", ()) and not matrix.disable_adapters:
            weight = weight + matrix.get_delta_weight(adapter)
    return weight if isinstance(base, nn.Linear) else weight.T


def norm_of(matrix: nn.Module) -> float:
    """Frobenius norm of a matrix."""
    return weight_of(matrix).norm().item()
