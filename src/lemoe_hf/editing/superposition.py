"""How much edits share of what they write to: the overlap of their keys ("Knowledge in Superposition", AAAI 2025).

Axes: `n` edits, `t` tokens, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.reference import reference_prompts
from ..moments import Whitening
from ..tuners.layer import EditingLayer
from ..tuners.lemoe.model import LEMoEModel
from .hooks import recorded
from .tokens import TokenizedEdit


def batches_by_overlap(keys: torch.Tensor, step: int) -> list[list[int]]:
    r"""
    Make batches of `step` edits each, of which the keys overlap.

    An edit of key $k_i$ changes the fact of key $k_j$ in proportion to $p_{ij} = k_i^T C^{-1} k_j / k_i^T C^{-1} k_i$
    ("Knowledge in Superposition"). Edits made together are fitted together and allow for one another, whereas
    a later batch does not see what it does to an earlier one. So those with a large $|p|$ belong in one batch, and as
    little as possible of it should be left between batches. Compared is the direction alone, $|\cos|$ in whitening space,
    which is the same for both edits of a pair.

    A batch starts with the first edit that is left, and takes one by one the edit that overlaps most with all it holds.

    Args:
        keys (`torch.Tensor` of shape `(n, d)`): Whitened and of unit norm, from [`whitened_keys`].
    """
    left, batches = torch.ones(len(keys), dtype=torch.bool), []
    while left.any():
        batch, overlap = [int(left.nonzero()[0])], torch.zeros(len(keys))
        left[batch] = False
        while len(batch) < step and left.any():
            overlap += (keys @ keys[batch[-1]]).abs()
            batch.append(int(overlap.masked_fill(~left, -torch.inf).argmax()))
            left[batch[-1]] = False
        batches.append(batch)
    return batches


def whitened_keys(
    model: PeftModel | PreTrainedModel, tokenizer: PreTrainedTokenizerBase, items: Sequence[TokenizedEdit]
) -> torch.Tensor:
    r"""
    Keys of edits in whitening space, $L^{-1} k$ with $L L^T = C$, of shape `(n, d)` and of unit norm.

    A key is what an expert would read at the last token of its edit's subject. The papers take the input of the FFN's second
    matrix there, which is what they edit; an expert reads what enters the FFN. C is the second moment of what enters it at
    all tokens of the edits' prompts and of the package's reference prompts, with the ridge of [`Whitening`].

    Raises:
        TypeError: If the model has no LEMoE adapter.
    """
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, LEMoEModel):
        raise TypeError(
            f"`by='superposition'` reads what enters a LEMoE adapter; got a {type(model).__name__} without one. Pass "
            f"`get_peft_model(model, LEMoEConfig())`."
        )
    others = [tokenizer(text)["input_ids"] for text in reference_prompts()]
    layer = tuner.layers_of()[0]
    keys = torch.zeros(len(items), layer.in_features, dtype=torch.double)
    moment = torch.zeros(layer.in_features, layer.in_features, dtype=torch.double)
    for row, inputs in expert_inputs(tuner, layer, [item.prompt for item in items] + others):
        moment.addmm_(inputs.T, inputs)
        if row < len(items):
            keys[row] = inputs[items[row].last]
    return Whitening(moment).unit(keys)


def expert_inputs(
    tuner: LEMoEModel, layer: EditingLayer, prompts: Sequence[list[int]]
) -> Iterator[tuple[int, torch.Tensor]]:
    """What the experts of a layer would read at each token of each prompt: its index, and a tensor of shape `(t, d)`."""
    passes = recorded(tuner.model, tuner.context, [layer.base_layer], prompts, pad=0, outputs=layer.is_block)
    for rows, _, _, (inputs,) in passes:
        inputs = F.rms_norm(inputs.float(), inputs.shape[-1:]).cpu().double()
        yield from ((row, inputs[i, : len(prompts[row])]) for i, row in enumerate(rows))
