"""What an edit leaves behind so that prompts find it again: spans of tokens, and the search for them in a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch

from .frozen import Frozen
from .index import Segment, grown


# A prompt that holds nine tenths of an anchor in a row is taken to mean it, unless unrelated prompts come that close too.
LOWEST_THRESHOLD = 0.9


@dataclass(frozen=True)
class Anchor:
    """
    A span of tokens that puts a prompt in the scope of an edit.

    Args:
        tokens (`tuple[int, ...]`): The tokens, in order.
        edit (`int`): Identifier of the edit that left the anchor. A later edit has a higher one.
        expert (`int`): Index of the expert that answers, in the bank of committed experts and then in the open ones.
        start (`int`): Index within `tokens` from which on the expert acts.
        threshold (`float`): Lowest share of the tokens at which the anchor is found.
        is_prompt (`bool`): The span is the edit's whole prompt, and not only its subject.
    """

    tokens: tuple[int, ...]
    edit: int
    expert: int
    start: int
    threshold: float = 1.0
    is_prompt: bool = False


@dataclass(frozen=True)
class Match:
    """
    An anchor found in a text, in columns `first` to `last` with the share `score` of its tokens.

    It is found as soon as enough of them have come, in the column `reached`. Where it is a subject, `rivals` are matches of
    other edits of that subject. Of a name that was found letter by letter, `name` tells which, and `place` from where to where
    among the letters of the text.
    """

    first: int
    last: int
    start: int
    score: float
    edit: int
    expert: int
    is_prompt: bool
    threshold: float
    reached: int = 0
    rivals: tuple[Match, ...] = ()
    name: str = ""
    place: tuple[int, int] = (0, 0)


class Anchors(Frozen):
    """
    All anchors of an adapter, as flat tensors, and the search for them.

    The search costs the same with ten anchors and with a hundred thousand: an anchor is looked up by its rarest token, and
    only the few whose rarest token occurs in the prompt are compared with it. (Tokenizers number tokens in the order of
    their merges, so the rarest token is the one with the highest number.) A committed anchor never changes.

    Axes: `a` anchors, `n` tokens of all anchors, `b` batch, `t` columns of the prompt.

    Buffers: `tokens` (n), `lengths` (a), `edit` (a), `expert` (a), `start` (a), `threshold` (a), `is_prompt` (a).
    """

    fields = (
        ("lengths", torch.int32),
        ("edit", torch.int32),
        ("expert", torch.int32),
        ("start", torch.int32),
        ("threshold", torch.float32),
        ("is_prompt", torch.bool),
    )

    tokens: torch.Tensor
    lengths: torch.Tensor
    edit: torch.Tensor
    expert: torch.Tensor
    start: torch.Tensor
    threshold: torch.Tensor
    is_prompt: torch.Tensor

    def __init__(self, num_anchors: int = 0, num_tokens: int = 0):
        super().__init__()
        self.register_buffer("tokens", torch.zeros(num_tokens, dtype=torch.int32))
        for name, dtype in self.fields:
            self.register_buffer(name, torch.zeros(num_anchors, dtype=dtype))
        self._segments: list[Segment] | None = None

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self._segments = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._segments = None
        super()._load_from_state_dict(*args, **kwargs)

    def add(self, anchors: list[Anchor]) -> None:
        """Append anchors; those already stored stay as they are."""
        if not anchors:
            return
        first, first_token = len(self), len(self.tokens)
        self.append(
            "tokens", torch.tensor([token for anchor in anchors for token in anchor.tokens], dtype=torch.int32)
        )
        values = {"lengths": [len(anchor.tokens) for anchor in anchors]}
        values.update({name: [getattr(anchor, name) for anchor in anchors] for name, _ in self.fields[1:]})
        for name, dtype in self.fields:
            self.append(name, torch.tensor(values[name], dtype=dtype))
        if self._segments is not None:
            self._segments = grown(self._segments, self._segment(first, first_token), self._segment)

    def remove(self, edit: int) -> None:
        """Forget the anchors of one edit; if nothing else uses its expert, the caller removes that as well."""
        keep = self.edit != edit
        self.tokens = self.tokens[torch.repeat_interleave(keep, self.lengths.long())]
        for name, _ in self.fields:
            setattr(self, name, getattr(self, name)[keep])
        self._segments = None

    def segments(self) -> list[Segment]:
        """The anchors by their rarest token, and by their edit; built when first needed."""
        if self._segments is None:
            self._segments = [self._segment(0, 0)]
        return self._segments

    def _segment(self, first: int, first_token: int) -> Segment:
        return Segment.of(first, first_token, self.tokens[first_token:], self.lengths[first:], self.edit[first:])

    def find(self, ids: torch.Tensor, threshold: float | None = None) -> list[list[Match]]:
        """
        Find every anchor in every prompt.

        Args:
            ids (`torch.Tensor` of shape `(b, t)`):
                Tokens of the prompts, -1 where there is padding or anything else that is not the prompt.
            threshold (`float`, *optional*):
                Replaces the anchors' own thresholds, except those of whole prompts, which must match exactly.

        Returns:
            For each prompt the list of its [`Match`]es, in no particular order.
        """
        matches: list[list[Match]] = [[] for _ in range(ids.shape[0])]
        if not len(self) or not ids.numel():
            return matches
        ids = ids.to(self.lengths.device)
        # Pairs of a column of the prompts and an anchor whose rarest token stands there.
        flat = ids.reshape(-1)
        pairs = [segment.beside(flat) for segment in self.segments()]
        source, anchor, column, begin = (torch.cat(each) for each in zip(*pairs, strict=True))
        if not len(source):
            return matches
        row, first = source // ids.shape[1], source % ids.shape[1] - column
        # Lay each anchor over its prompt and count the tokens that agree.
        length = self.lengths[anchor].long()
        offset = torch.arange(int(length.max()), device=flat.device)
        column = first[:, None] + offset
        inside = (offset < length[:, None]) & (column >= 0) & (column < ids.shape[1])
        text = ids[row[:, None], column.clamp(0, ids.shape[1] - 1)]
        span = self.tokens[(begin[:, None] + offset).clamp(max=len(self.tokens) - 1)]
        agrees = (text == span) & inside
        score = agrees.sum(1) / length
        # An anchor that agrees in part occupies the columns from its first token found to its last,
        # and acts from there at the latest: never from a column that is yet to be decoded.
        left, right = agrees.long().argmax(1), len(offset) - 1 - agrees.flip(1).long().argmax(1)

        lowest = self.threshold[anchor]
        if threshold is not None:
            lowest = torch.where(self.is_prompt[anchor], lowest, threshold)
        found = score >= lowest
        enough = agrees.cumsum(1) >= (lowest * length - 1e-4)[:, None]
        reached = first + enough.long().argmax(1)
        # One transfer for all that was found: an accelerator is not asked for every number by itself.
        fields = [
            row,
            first,
            left,
            right,
            reached,
            *(getattr(self, name)[anchor] for name in ("start", "edit", "expert")),
        ]
        table = torch.stack([*fields, self.is_prompt[anchor]], 1)[found].tolist()
        scores = torch.stack([score, self.threshold[anchor]], 1)[found].tolist()
        for (row_, first_, left_, right_, reached_, start, edit, expert, is_prompt), (score_, own) in zip(
            table, scores, strict=True
        ):
            matches[row_].append(
                Match(
                    first=first_ + left_,
                    last=first_ + right_,
                    start=first_ + min(start, right_),
                    score=score_,
                    edit=edit,
                    expert=expert,
                    is_prompt=bool(is_prompt),
                    threshold=own,
                    reached=reached_,
                )
            )
        return matches

    def next_edit(self) -> int:
        """Identifiers of edits count up, so that of two edits of one prompt the later one wins."""
        return int(self.edit.max()) + 1 if len(self) else 0

    def span(self, edit: int) -> list[int]:
        """Tokens of the prompt of one edit, in order, as it was first spelled."""
        return self.prompts(edit)[0]

    def prompts(self, edit: int) -> list[list[int]]:
        """Tokens of the prompt of one edit, in each of its spellings."""
        spelled = []
        for segment in self.segments():
            own = segment.of_one(edit)
            own = own[self.is_prompt[own]]
            begins, lengths = segment.offset[own - segment.first].tolist(), self.lengths[own].tolist()
            spelled += [self.tokens[i : i + n].tolist() for i, n in zip(begins, lengths, strict=True)]
        return spelled

    def expert_of(self, edit: int) -> int | None:
        """The expert of an edit; `None` where there is no such edit."""
        own = next((own for own in (segment.of_one(edit) for segment in self.segments()) if len(own)), None)
        return None if own is None else int(self.expert[own[0]])
