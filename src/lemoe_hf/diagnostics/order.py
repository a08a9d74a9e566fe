r"""
In which order rank-one edits harm each other least, by a bound of ours on the paper's equation of interference.

An edit $\Lambda_i (C^{-1} k_i)^T$ changes what was written for an earlier fact j by at most
$|k_i^T C^{-1} k_j| \cdot ||\Lambda_i||$. Summed up, every pair of edits costs its overlap, which is symmetric, times the norm
of the one that is made later. So the bound is smallest in descending order of the norms, whatever the overlaps are. It takes
each edit's value for independent of the order, and adds magnitudes that may cancel.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..rank_one import RankOneArguments, Update
from .interference import Written, written


@dataclass(frozen=True)
class CostOrder:
    """
    Args:
        permutation (`list[int]`): Indices of the edits, as they were given, in the new order.
        edits (`list` of [`Edit`]): The edits in that order.
        cost (`float`), cost_as_given (`float`): The bound, in this order and in the given one.
        norms (`list[float]`): Of what each edit writes, as they were given.
    """

    permutation: list[int]
    edits: list[Edit]
    cost: float
    cost_as_given: float
    norms: list[float]


def order_cost(gram: torch.Tensor, norms: torch.Tensor, order: Sequence[int]) -> float:
    r"""
    The bound of an order of edits.

    Args:
        gram (`torch.Tensor` of shape `(n, n)`): $k_i^T C^{-1} k_j$.
        norms (`torch.Tensor` of shape `(n,)`): $||\Lambda_i||$.
        order (`Sequence[int]`): Indices, the first edit first.

    >>> order_cost(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.tensor([3.0, 2.0]), [0, 1])
    1.0
    """
    index = torch.tensor(list(order))
    pairs = gram[index][:, index].abs().tril(-1)
    return (pairs.sum(1) * norms[index]).sum().item()


def by_descending_norm(norms: torch.Tensor) -> list[int]:
    """The order with the smallest bound; of equals the earlier first."""
    return norms.argsort(descending=True, stable=True).tolist()


def plan_by_cost(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    layer: int,
    arguments: RankOneArguments | None = None,
    data: Iterable[Any] | None = None,
    updates: Sequence[Update] | None = None,
) -> CostOrder:
    """
    Plan the order in which to make rank-one edits in one layer.

    Which edits are best made together in an expert is another question: `plan_order(..., by="superposition")` answers it,
    in the same whitening space.

    Args:
        updates (`Sequence` of [`Update`], *optional*):
            The edits as they would be made, such as `select_layer` returns them. By default they are solved here.

    The other arguments, and the errors, are those of [`predict_interference`].
    """
    of_edits: Written = written(model, tokenizer, edits, layer, arguments, data, updates)
    gram = of_edits.whitened @ of_edits.whitened.T
    norms = of_edits.delta / gram.diagonal()
    permutation = by_descending_norm(norms)
    return CostOrder(
        permutation,
        [edits[i] for i in permutation],
        order_cost(gram, norms, permutation),
        order_cost(gram, norms, range(len(edits))),
        norms.tolist(),
    )
