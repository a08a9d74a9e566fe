"""Experts, stacked: one gather and one matrix product a step, and no loop over experts.

Axes: `g` pieces of texts, `n` tokens of each, `s` experts that are mixed, `e` experts of a stack, `d` size of the input, `o`
of the output (for an FFN both are the hidden size), `r` width of an expert.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from ..routing.frozen import Frozen
from ..routing.passes import Acting


class Experts(Frozen):
    r"""
    A stack of experts of one shape. Committed experts are buffers, experts in training are parameters.

    A LoRA expert is $f(x) = B A x$, an FFN expert is $f(x) = W_{out} (\mathrm{SiLU}(W_{gate} x) \odot W_{in} x)$.

    Args:
        num (`int`): Number of experts, e.
        in_features (`int`): d.
        width (`int`): r.
        gated (`bool`): FFN rather than LoRA.
        trainable (`bool`): Parameters rather than buffers.
        dtype (`torch.dtype`): Of the weights.
        out_features (`int`, *optional*, defaults to `in_features`): o.
    """

    def __init__(
        self,
        num: int,
        in_features: int,
        width: int,
        gated: bool,
        trainable: bool,
        dtype: torch.dtype = torch.float32,
        out_features: int | None = None,
    ):
        super().__init__()
        self.trainable = trainable
        shapes = {"in_proj": (num, in_features, width), "out_proj": (num, width, out_features or in_features)}
        if gated:
            shapes["gate_proj"] = (num, in_features, width)
        self.names = tuple(shapes)
        for name, shape in shapes.items():
            self.set(name, torch.zeros(shape, dtype=dtype))

    def set(self, name: str, weight: torch.Tensor) -> None:
        if self.trainable:
            setattr(self, name, nn.Parameter(weight))
        elif name in self._buffers:
            setattr(self, name, weight)
        else:
            self.register_buffer(name, weight)

    def __len__(self) -> int:
        return self.in_proj.shape[0]

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_proj.shape[1]}, width={self.in_proj.shape[2]}, out_features={self.out_proj.shape[2]}"
        return f"{len(self)} {'in training' if self.trainable else 'committed'}, {sizes}, dtype={self.in_proj.dtype}"

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in self.names}

    def reset_parameters(self, init_weights: bool, seed: int = 0, alike: bool = True) -> None:
        """Random input projections, the same for every expert if they are to start `alike`, and output projections of zero.

        The same start for every expert makes an edit independent of the edits beside it. Experts that share edits have
        nothing else to tell them apart.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, weight in self.weights().items():
            if weight.device.type == "meta":
                continue
            if name == "out_proj" and init_weights:
                nn.init.zeros_(weight)
            else:
                shape = weight.shape[1:] if alike else weight.shape
                start = torch.randn(shape, generator=generator) * weight.shape[1] ** -0.5
                with torch.no_grad():
                    weight.copy_(start.expand_as(weight))

    def forward(self, x: torch.Tensor, experts: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (`torch.Tensor` of shape `(g, n, d)`): Input of the bypassed module.
            experts (`torch.Tensor` of shape `(g, s)`): Indices into the stack.
            gates (`torch.Tensor` of shape `(g, s, n)`): Weight of each expert at each token.

        Returns:
            `torch.Tensor` of shape `(g, n, o)`.
        """
        # A single expert in training, wide as the paper's are, is not copied for every piece.
        index = 0 if self.trainable and len(self) == 1 < len(x) else experts
        picked = {name: weight[index].to(x.dtype) for name, weight in self.weights().items()}
        h = torch.matmul(x[:, None], picked["in_proj"])  # g s n r
        if "gate_proj" in picked:
            h = F.silu(torch.matmul(x[:, None], picked["gate_proj"])) * h
        return torch.matmul(h * gates[..., None].to(x.dtype), picked["out_proj"]).sum(1)


def bypass(bank: Experts, in_training: Experts, x: torch.Tensor, acting: Acting) -> torch.Tensor:
    """What experts, committed and in training, make of inputs of shape `(g, n, d)`: shape `(g, n, o)`."""
    experts, gates = acting.experts.to(x.device), acting.gates.to(x.device)
    is_open = (experts >= acting.num_committed)[..., None]
    delta = torch.zeros((), dtype=x.dtype, device=x.device)
    if len(bank):
        delta = delta + bank(x, experts.clamp(max=len(bank) - 1), gates * ~is_open)
    if acting.uses_open:
        delta = delta + in_training(x, (experts - acting.num_committed).clamp(min=0), gates * is_open)
    return delta
