"""LoRAs of one layer with their router, and what is stored of the edits that went through them.

Axes: `g` texts, `n` tokens of each, `e` LoRAs of a layer, `l` layers, `d` size of the input, `o` of the output, `r` rank, `q`
size of a query, `c` edits, `k` LoRAs that act in a layer.
"""

from __future__ import annotations

import math
import random
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import nn

from ...routing.frozen import Frozen
from .config import ELDERConfig


class Mixture(nn.Module):
    r"""
    LoRAs of one layer and their router: $\Delta(x) = \sum_{i \in T} s_i B_i A_i x$ with $s = \mathrm{softmax}(W q)$ and T its
    top k, not renormalised (ELDER, section "Mixture-of-LoRA").

    Args:
        config ([`ELDERConfig`]): Of the adapter.
        in_features (`int`), out_features (`int`), query_size (`int`): d, o and q.
    """

    def __init__(self, config: ELDERConfig, in_features: int, out_features: int, query_size: int):
        super().__init__()
        self.top_k, self.layernorm = config.top_k, config.query_norm == "layernorm"
        num = config.num_experts
        self.in_proj = nn.Parameter(torch.zeros(num, in_features, config.r))
        self.out_proj = nn.Parameter(torch.zeros(num, config.r, out_features))
        self.router = nn.Parameter(torch.zeros(num, query_size))

    def extra_repr(self) -> str:
        num, size, rank = self.in_proj.shape
        return f"{num} LoRAs, in_features={size}, r={rank}, out_features={self.out_proj.shape[2]}, top_k={self.top_k}"

    @torch.no_grad()
    def reset_parameters(self, config: ELDERConfig, seed: int) -> None:
        if self.in_proj.device.type == "meta":
            return
        generator = torch.Generator().manual_seed(seed)
        size = config.r if config.lora_init == "released" else self.in_proj.shape[1]
        weights = {self.in_proj: size, self.router: self.router.shape[1]}
        if not config.init_weights:
            weights[self.out_proj] = config.r
        for weight, fan_in in weights.items():
            bound = max(fan_in, 1) ** -0.5
            weight.copy_((torch.rand(weight.shape, generator=generator) * 2 - 1) * bound)

    def probabilities(self, queries: torch.Tensor) -> torch.Tensor:
        """Softmax over the LoRAs, of shape `(g, e)`, of queries of shape `(g, q)`."""
        queries = queries.to(self.router.device, torch.float32)
        if self.layernorm:
            queries = F.layer_norm(queries, queries.shape[-1:])
        return (queries @ self.router.float().T).softmax(-1)

    def chosen(self, probabilities: torch.Tensor) -> torch.Tensor:
        """The top k, of shape `(g, k)`."""
        return probabilities.topk(self.top_k, -1).indices

    def forward(self, x: torch.Tensor, gates: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x (`torch.Tensor` of shape `(g, n, d)`): Input of the linear layer.
            gates (`torch.Tensor` of shape `(g, n, e)` or `(g, 1, e)`): Weight of each LoRA, zero for those that do not act.

        Returns:
            `torch.Tensor` of shape `(g, n, o)`.
        """
        h = torch.einsum("gnd,edr->gner", x, self.in_proj.to(x.dtype)) * gates[..., None].to(x)
        return torch.einsum("gner,ero->gno", h, self.out_proj.to(x.dtype))

    def check(self, saved: dict[str, torch.Tensor]) -> None:
        for name, weight in self.named_parameters():
            if saved[name].shape != weight.shape:
                raise ValueError(
                    f"The adapter's {name} has the shape {tuple(saved[name].shape)}, where this model needs "
                    f"{tuple(weight.shape)}: it was made for another base model, or its config has been changed."
                )


def gates_of(probabilities: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Probabilities of shape `(..., e)` of the chosen, of shape `(..., k)`; zero for all others."""
    return torch.zeros_like(probabilities).scatter(-1, chosen, probabilities.gather(-1, chosen))


class Codes(Frozen):
    """
    Of every edit its query, the LoRAs allocated to its target, and its code: those that the routers have chosen.

    Args:
        num_codes (`int`): c.
    """

    def __init__(self, num_codes: int = 0):
        super().__init__()
        self.register_buffer("edit", torch.zeros(num_codes, dtype=torch.int32))
        self.register_buffer("queries", torch.zeros(num_codes, 0))
        self.register_buffer("allocated", torch.zeros(num_codes, 0, dtype=torch.int16))  # c, l times k
        self.register_buffer("codes", torch.zeros(num_codes, 0, dtype=torch.int8))  # c, l times e

    def __len__(self) -> int:
        return len(self.edit)

    def extra_repr(self) -> str:
        return f"{len(self)} edits, codes of {self.codes.shape[1]} bits"

    def add(self, edits: list[int], queries: torch.Tensor, allocated: torch.Tensor, codes: torch.Tensor) -> None:
        """Append edits, with queries `(c, q)`, allocations `(c, l, k)` and codes `(c, l, e)`."""
        new = {
            "edit": torch.tensor(edits),
            "queries": queries.detach(),
            "allocated": allocated.flatten(1),
            "codes": codes.flatten(1),
        }
        for name, tensor in new.items():
            stored = getattr(self, name)
            tensor = tensor.to(stored)
            setattr(self, name, torch.cat([stored, tensor]) if len(stored) else tensor)

    def remove(self, edit: int) -> None:
        keep = self.edit != edit
        for name, _ in list(self.named_buffers()):
            setattr(self, name, getattr(self, name)[keep])

    def rows(self, edits: list[int]) -> torch.Tensor:
        """Where these edits are stored."""
        place = {edit: row for row, edit in enumerate(self.edit.tolist())}
        return torch.tensor([place[edit] for edit in edits], dtype=torch.long, device=self.edit.device)

    def nearest(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Hamming distance of codes of shape `(g, l, e)` to the nearest of the edits, and which that is, both of shape `(g,)`. It
        is even and at most twice the LoRAs that act; without edits it is beyond all, and the edit -1.
        """
        flat = codes.flatten(1).float()
        if not len(self):
            return torch.full((len(flat),), torch.inf), torch.full((len(flat),), -1)
        stored = self.codes.to(flat)
        distance, row = (flat.sum(1)[:, None] + stored.sum(1) - 2 * flat @ stored.T).min(1)
        return distance, self.edit[row]

    def check(self, saved: dict[str, torch.Tensor]) -> None:
        sizes = {name: len(tensor) for name, tensor in saved.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"The adapter's weights are damaged: its codes are of unequal numbers of edits, {sizes}.")


def draw_allocation(
    num_layers: int, num_experts: int, top_k: int, used: set[tuple[int, ...]], unique: bool, seed: int
) -> tuple[int, ...]:
    """
    A random allocation: `top_k` LoRAs in each of `num_layers` layers, one layer after the other.

    Args:
        used (`set`): The allocations of other targets.
        unique (`bool`): Whether it must be none of these.

    Raises:
        ValueError: If there is none left.
    """
    total = math.comb(num_experts, top_k) ** num_layers
    if unique and len(used) >= total:
        raise ValueError(
            f"All {total} allocations of {top_k} of {num_experts} LoRAs in {num_layers} layers are taken by the targets of "
            f"earlier edits. Make a new adapter with more `num_experts` or `num_layers`, or pass `codes_unique=False`."
        )
    source, choices = random.Random(seed), list(combinations(range(num_experts), top_k))
    while True:
        drawn = tuple(lora for _ in range(num_layers) for lora in source.choice(choices))
        if not unique or drawn not in used:
            return drawn
