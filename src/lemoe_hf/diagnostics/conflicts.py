"""Facts that cannot be edited one without the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..data.edit import Edit


@dataclass(frozen=True)
class Pair:
    """
    Two facts whose keys are nearly one.

    Args:
        first (`int`), second (`int`): Indices of the edits, in the order in which they are made.
        p (`float`): The larger of their superposition coefficients.
        first_prompt (`str`), second_prompt (`str`), first_target (`str`), second_target (`str`): Of the edits.
        is_conflict (`bool`): Whether the targets differ: the later edit takes the place of the earlier.
    """

    first: int
    second: int
    p: float
    first_prompt: str
    second_prompt: str
    first_target: str
    second_target: str
    is_conflict: bool

    def __str__(self) -> str:
        if self.is_conflict:
            what = f"conflict: {self.second_target!r} would take the place of {self.first_target!r}"
        else:
            what = f"bound: one edit to {self.first_target!r} makes the other as well"
        return f"{what} (p {self.p:.2f}): {self.first_prompt!r}, {self.second_prompt!r}"


def bound_pairs(edits: Sequence[Edit], p: torch.Tensor, bound: float = 0.8) -> list[Pair]:
    """
    Pairs of edits of which one changes the fact of the other nearly as much as its own: bound facts, near-duplicates, and
    other questions about one subject, whose keys are the same where the texts before its end are.

    Args:
        edits (`Sequence` of [`Edit`]): In the order in which they are to be made.
        p (`torch.Tensor` of shape `(n, n)`): Superposition coefficients.
        bound (`float`, *optional*, defaults to 0.8): The smallest coefficient of such a pair, in either direction.
    """
    larger = torch.maximum(p, p.T).triu(1)
    found = []
    for i, j in (larger >= bound).nonzero().tolist():
        first, second = edits[i], edits[j]
        differ = first.target_new.strip().lower() != second.target_new.strip().lower()
        targets = (first.target_new, second.target_new)
        found.append(Pair(i, j, larger[i, j].item(), first.prompt, second.prompt, *targets, differ))
    return sorted(found, key=lambda pair: -pair.p)
