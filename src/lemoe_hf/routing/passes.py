"""One forward pass: the texts in it, what they ask for, and on which of its columns which experts act."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from .layout import Piece
from .router import Asking, Router, score, waiting
from .text import Text


# Width of a pass that has no columns: experts act on all that there is.
EVERYTHING = -1


@dataclass(frozen=True)
class Batch:
    """
    What a forward pass is given, text by text.

    Args:
        pieces (`list` of [`Piece`]): The new tokens of each text, and where they stand.
        texts (`list` of [`Text`]): The texts, with these tokens.
        firsts (`list[int]`): The column of each text's first new token.
        ids (`torch.Tensor` of shape `(b, t)`): Tokens of the batch.
        inputs (`dict`): All that the forward pass was given.
        prompt (`torch.Tensor` of shape `(b, t)`, *optional*): The whole prompts of the call of `generate`, -1 for padding.
    """

    pieces: list[Piece]
    texts: list[Text]
    firsts: list[int]
    ids: torch.Tensor
    inputs: dict[str, Any]
    prompt: torch.Tensor | None = None

    @property
    def width(self) -> int:
        return self.ids.shape[1]

    @property
    def askings(self) -> list[Asking]:
        return [Asking(text, first) for text, first in zip(self.texts, self.firsts, strict=True)]


@dataclass
class Places:
    """
    On which columns of a forward pass an adapter acts.

    Axes: `g` pieces of texts, `n` columns of each.

    Args:
        rows (`torch.Tensor` of shape `(g, n)`), columns (`torch.Tensor` of shape `(g, n)`): Places in the batch.
        written (`torch.Tensor` of shape `(g, n)`): The columns that are written to; all others keep their bits.
        width (`int`): Columns of the batch.
        loss (`torch.Tensor`, *optional*): Of a router that learns, to be added to the model's own.
    """

    rows: torch.Tensor
    columns: torch.Tensor
    written: torch.Tensor
    width: int
    loss: torch.Tensor | None = field(default=None, kw_only=True)

    @staticmethod
    def padded(
        places: Sequence[tuple[int, Sequence[int]]], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows with the columns of each, as `rows`, `columns` and `written`."""
        longest = max(len(columns) for _, columns in places)
        padded = [[*columns, *[-1] * (longest - len(columns))] for _, columns in places]
        columns = torch.tensor(padded, device=device)
        rows = torch.tensor([row for row, _ in places], device=device)[:, None].expand_as(columns)
        written = columns >= 0
        return rows, columns.clamp(min=0), written

    def in_streams(self, times: int) -> Self:
        """The same where layers are given every column `times` times, one stream behind the other."""
        shifts = torch.arange(times, device=self.columns.device) * self.width
        columns = (self.columns[:, None] + shifts[:, None]).flatten(1)
        rows, written = self.rows.repeat(1, times), self.written.repeat(1, times)
        return replace(self, rows=rows, columns=columns, written=written, width=self.width * times)


@dataclass
class Acting(Places):
    """
    Which experts act on which columns of a forward pass.

    Axes: `g` pieces of texts on which the same experts act, `n` columns of each, `s` experts that are mixed.

    Args:
        experts (`torch.Tensor` of shape `(g, s)`): Index in the bank of committed experts, then in the open ones.
        gates (`torch.Tensor` of shape `(g, s, n)`): Weight of each expert.
        num_committed (`int`): Experts from this index on are open ones.
        uses_open (`bool`): Whether any of them is.
    """

    experts: torch.Tensor
    gates: torch.Tensor
    num_committed: int
    uses_open: bool

    @classmethod
    def of(
        cls,
        places: list[tuple[int, list[int]]],
        experts: torch.Tensor,
        gates: torch.Tensor,
        width: int,
        num_committed: int,
        uses_open: bool,
    ) -> Acting:
        """
        Experts of shape `(g, s)` with gates of shape `(g, s)`, each on the columns of one row, which `places` tell.
        """
        rows, columns, written = cls.padded(places, experts.device)
        gates = gates[:, :, None] * written[:, None]
        return cls(rows, columns, written, width, experts, gates, num_committed, uses_open)

    def in_streams(self, times: int) -> Self:
        return replace(super().in_streams(times), gates=self.gates.repeat(1, 1, times))


@dataclass
class Pass:
    """
    What a pass asks for, and what acts in it. Its texts are read when it begins, decide at the last layer that is looked at,
    and tell what acts when the first bypass asks.

    Args:
        router ([`Router`]): Of the adapter.
        batch ([`Batch`]): What the pass was given.
    """

    router: Router
    batch: Batch
    recorded: list[torch.Tensor] = field(default_factory=list, kw_only=True)

    # The modules whose inputs it looks at, if not those of the adapter; and whether what acts has gradients.
    taps: ClassVar[list[nn.Module] | None] = None
    learns = False  # no field: those of passes that have it come in their own order

    def __post_init__(self) -> None:
        self.askings = self.batch.askings
        self.router.questions(self.askings)
        self.waits = any(each.waits for each in self.askings)
        self._acting: Places | None = None
        self._is_over = False

    def tap(self, hidden: torch.Tensor) -> None:
        """Keep, of hidden states of shape `(b, t, d)`, those at the columns where something may be asked for."""
        rows, columns = [], []
        for piece, asking in zip(self.batch.pieces, self.askings, strict=True):
            for _, question in waiting([asking]):
                rows.append(piece.row)
                column = question.column
                if question.kind == "end":
                    column = max(asking.text.said_until(column), asking.first)
                columns.append(piece.places[column - asking.first] + hidden.shape[1] - self.batch.width)
        self.recorded.append(hidden[rows, columns])

    def decide(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Let the questions ask, once all hidden states are there."""
        device = self.recorded[-1].device
        score(self.router, self.askings, [states.to(device) for states in self.recorded], embed)
        self.waits = False

    def acting(self) -> Places | None:
        """What acts; `None` where the base model answers everything."""
        if not self._is_over:
            self._is_over, self._acting = True, self._act()
        return self._acting

    def _act(self) -> Places | None:
        """What a method makes of what is asked for."""
        raise NotImplementedError

    def asked_for(self) -> list[tuple[int, int, list[int]]]:
        """Which text is acted on, by which expert, and on which columns of its row."""
        if self.waits:
            raise RuntimeError(
                "Nothing has told what the prompts ask for: the layers that are looked at have not run before the bypass. "
                "Pass `relation_gate=False` in the config, or leave `target_modules` out."
            )
        found = []
        for i, (piece, asking) in enumerate(zip(self.batch.pieces, self.askings, strict=True)):
            acts = asking.text.act(asking.first, asking.questions, self.router.targets.of)
            of_edit: dict[int, list[int]] = {}
            for place, edit in zip(piece.places, acts, strict=True):
                if edit >= 0:
                    of_edit.setdefault(edit, []).append(place)
            # A text knows edits, and each pass where these are: others may have been undone in the meantime, or this one.
            for edit, acted_on in of_edit.items():
                expert = self.router.anchors.expert_of(edit)
                if expert is not None:
                    found.append((i, expert, acted_on))
        return found


@dataclass
class ExpertPass(Pass):
    """
    A pass in which every edit has an expert.

    Args:
        num_committed (`int`): Experts from this index on are open ones.
        learns (`bool`): Whether the open expert is to have gradients, if only of zero.
    """

    num_committed: int
    learns: bool = False

    def _act(self) -> Acting | None:
        found = self.asked_for()
        places = [(self.batch.pieces[i].row, columns) for i, _, columns in found]
        experts = [expert for _, expert, _ in found]
        gates = [1.0] * len(experts)
        if self.learns and not places:  # in evaluation mode, too, a loss has gradients, if only of zero
            places.append((0, [self.batch.width - 1]))
            experts.append(self.num_committed)
            gates.append(0.0)
        if not places:
            return None
        device = self.batch.ids.device
        return Acting.of(
            places,
            torch.tensor(experts, device=device)[:, None],
            torch.tensor(gates, device=device)[:, None],
            self.batch.width,
            self.num_committed,
            uses_open=self.learns or max(experts) >= self.num_committed,
        )
