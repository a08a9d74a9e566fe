"""The index of anchors: by their rarest token, and by their edit. It grows by what is new.

Axes: `a` anchors of a segment, `n` their tokens, `t` tokens of texts, `p` pairs of a column and an anchor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Segment:
    """
    The index of anchors that were stored one after the other.

    Args:
        first (`int`), first_token (`int`): Of the anchors, and of their tokens, among all.
        rarest (`torch.Tensor` of shape `(a,)`), order (`torch.Tensor` of shape `(a,)`): Rarest tokens, sorted, and whose.
        column (`torch.Tensor` of shape `(a,)`): Of each anchor the column of its rarest token.
        offset (`torch.Tensor` of shape `(a,)`): Of each anchor its first token among all.
        edit (`torch.Tensor` of shape `(a,)`), of_edit (`torch.Tensor` of shape `(a,)`): Edits, sorted, and their anchors.
    """

    first: int
    first_token: int
    rarest: torch.Tensor
    order: torch.Tensor
    column: torch.Tensor
    offset: torch.Tensor
    edit: torch.Tensor
    of_edit: torch.Tensor

    def __len__(self) -> int:
        return len(self.order)

    @classmethod
    def of(
        cls, first: int, first_token: int, tokens: torch.Tensor, lengths: torch.Tensor, edit: torch.Tensor
    ) -> Segment:
        """Of anchors with these tokens of shape `(n,)`, and lengths and edits of shape `(a,)`."""
        tokens, lengths = tokens.long(), lengths.long()
        begins = lengths.cumsum(0) - lengths
        owner = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        rarest = torch.full_like(lengths, -1).scatter_reduce(0, owner, tokens, "amax")
        position = torch.arange(len(tokens), device=lengths.device)
        is_rarest = tokens == rarest[owner]
        found = torch.full_like(lengths, len(tokens)).scatter_reduce(0, owner[is_rarest], position[is_rarest], "amin")
        ordered, order = rarest.sort()
        edits, of_edit = edit.sort(stable=True)
        return cls(
            first, first_token, ordered, first + order, found - begins, first_token + begins, edits, first + of_edit
        )

    def beside(self, flat: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Where the rarest token of an anchor stands in texts.

        Args:
            flat (`torch.Tensor` of shape `(t,)`): Tokens of texts, one behind the other.

        Returns:
            Of each pair the place in the texts, the anchor, the column of its rarest token, and its first token among all.
        """
        low = torch.searchsorted(self.rarest, flat)
        count = torch.searchsorted(self.rarest, flat, right=True) - low
        place = torch.repeat_interleave(torch.arange(len(flat), device=flat.device), count)
        step = torch.arange(len(place), device=flat.device) - (count.cumsum(0) - count)[place]
        anchor = self.order[low[place] + step]
        return place, anchor, self.column[anchor - self.first], self.offset[anchor - self.first]

    def of_one(self, edit: int) -> torch.Tensor:
        """The anchors of an edit."""
        low, high = torch.searchsorted(self.edit, self.edit.new_tensor([edit, edit + 1])).tolist()
        return self.of_edit[low:high]


def grown(segments: list[Segment], new: Segment, make: Callable[[int, int], Segment]) -> list[Segment]:
    """
    Segments with one more; those that are not much longer than what stands behind them are made one with it, so that there
    are few, and an anchor is sorted few times.

    Args:
        make (`Callable`): Makes the segment of all anchors from one on, and from its first token on.
    """
    segments = [*segments, new]
    while len(segments) > 1 and len(segments[-2]) < 2 * len(segments[-1]):
        longer = segments[-2]
        segments = [*segments[:-2], make(longer.first, longer.first_token)]
    return segments
