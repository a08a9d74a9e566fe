"""Which experts act on which columns of a batch, and which of the edits that are named a prompt asks for."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F

from .relations import Relations, features_of


# Scores closer than this, in standard deviations, do not tell which of two wordings of one question is meant.
NEAR = 2.0


@dataclass
class Candidates:
    """
    Edits of the subjects that prompts name: an edit acts only where the prompt asks for what the edit is about.

    Axes: `b` batch, `s` slots of the route, `c` edits of one subject, `t` columns at which a question may end, `k` as in
    [`Relations`].

    Args:
        edits (`torch.Tensor` of shape `(b, s, c)`): The edits, -1 where there is none.
        experts (`torch.Tensor` of shape `(b, s, c)`): Their experts.
        keys (`torch.Tensor` of shape `(b, s, c, k)`): What the edits are about.
        threshold (`torch.Tensor` of shape `(b, s, c)`): Lowest score of each; infinite where there is no edit.
        score (`torch.Tensor` of shape `(b, s, c)`): The highest one so far.
        named_at (`torch.Tensor` of shape `(b, s)`): Column at which the subject ends.
        columns (`torch.Tensor` of shape `(t,)`): Columns at which a question may end.
        asked (`torch.Tensor` of shape `(b, s, t)`): Whether a question about the subject may end there.
        words (`torch.Tensor` of shape `(b, s, t, k)`): What is said up to there, as the relations see it.
        num_words (`int`): Features that are taken from words; those of hidden states follow.
        hidden (`list` of `torch.Tensor`): What entered the layers that tell, of the forward pass that is running.
    """

    edits: torch.Tensor
    experts: torch.Tensor
    keys: torch.Tensor
    threshold: torch.Tensor
    score: torch.Tensor
    named_at: torch.Tensor
    columns: torch.Tensor
    asked: torch.Tensor
    words: torch.Tensor
    num_words: int
    hidden: list[torch.Tensor] = field(default_factory=list)

    def repeat(self, times: int) -> Candidates:
        fields = ("edits", "experts", "keys", "threshold", "score", "named_at", "asked", "words")
        repeated = {name: getattr(self, name).repeat_interleave(times, 0) for name in fields}
        return replace(self, hidden=[], **repeated)

    def scores(self, column: int, relations: Relations) -> tuple[torch.Tensor, torch.Tensor]:
        """
        How surely the columns from `column` on, of which the hidden states were recorded, ask for each edit.

        Returns:
            Those `n` of the columns at which a question may end, and scores of shape `(b, s, c, n)`, -inf where not.
        """
        hidden, self.hidden = self.hidden, []
        here = (self.columns >= column) & (self.columns < column + hidden[0].shape[1])
        columns, device = self.columns[here], hidden[0].device
        if not len(columns):
            return columns, self.score.new_empty(*self.score.shape, 0)
        at = (columns - column).to(device)
        features = features_of([states.to(device)[:, at] for states in hidden])
        said = relations.project(features, self.num_words).to(self.words)
        slots = []
        for keys, words in zip(self.keys.unbind(1), self.words[:, :, here].unbind(1), strict=True):
            slots.append(relations.score(keys, F.normalize(said + words, dim=-1)))
        return columns, torch.stack(slots, 1).masked_fill(~self.asked[:, :, None, here], -torch.inf)


@dataclass
class Route:
    """
    Which experts act on which columns of a batch.

    Axes: `b` batch, `s` slots. Slots of a row that follow one another (nearest anchor) have disjoint columns; slots that
    are mixed (top-k of the KV anchors) share them.

    Args:
        experts (`torch.Tensor` of shape `(b, s)`): Index in the bank of committed experts, then in the open ones.
        gates (`torch.Tensor` of shape `(b, s)`): Weight of each expert, 0 where the row is deferred to the base model.
        start (`torch.Tensor` of shape `(b, s)`):
            First column on which the expert acts, counting padding and the cache; `ENDLESS` until the prompt asks for one
            of the `candidates`.
        end (`torch.Tensor` of shape `(b, s)`): First column on which it does not act any more.
        num_committed (`int`): Experts from this index on are open ones.
        uses_open (`bool`): Whether any slot holds an open expert.
        last_start (`int`): Largest `start`: beyond it nothing but the final slots acts.
        candidates ([`Candidates`], *optional*): Edits that act where they are asked for.
        column (`int`), num_columns (`int`): The first column of the forward pass that it applies to, and their number.
        final ([`Route`], *optional*): What is left of the route when the prompt is over, as `seal` keeps it aside.
        loss (`torch.Tensor`, *optional*): Of a router that learns, to be added to the model's own.
    """

    experts: torch.Tensor
    gates: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    num_committed: int = 0
    uses_open: bool = False
    last_start: int = 0
    candidates: Candidates | None = None
    column: int = 0
    num_columns: int = 1
    final: Route | None = None
    loss: torch.Tensor | None = None

    ENDLESS = 2**31 - 1

    @classmethod
    def to_open(cls, start: torch.Tensor, num_committed: int, gate: float = 1.0, last_start: int = 0) -> Route:
        """Every row to the open expert, from `start`, of shape `(b, 1)`, on."""
        route = cls(
            experts=torch.full_like(start, num_committed),
            gates=torch.full_like(start, gate, dtype=torch.float32),
            start=start,
            end=torch.full_like(start, cls.ENDLESS),
            num_committed=num_committed,
            uses_open=True,
            last_start=last_start,
        )
        route.final = replace(route, column=last_start + 1)
        return route

    def gates_at(self, num_columns: int) -> torch.Tensor:
        """Gates of shape `(b, s, t)` for the `t` columns from `column` on."""
        if self.column > self.last_start:
            return self.gates[:, :, None].expand(-1, -1, num_columns)
        column = self.column + torch.arange(num_columns, device=self.gates.device)
        acts = (self.start[:, :, None] <= column) & (column < self.end[:, :, None])
        return self.gates[:, :, None] * acts

    def seal(self) -> None:
        """Keep aside what is left of the route when the prompt is over: the slots without an end."""
        lasts = self._lasts()
        self.final = replace(
            self,
            experts=self.experts[:, lasts],
            gates=self._final_gates(lasts),
            start=self.start[:, lasts],
            end=self.end[:, lasts],
            candidates=None,
            column=self.last_start + 1,
        )

    def _lasts(self) -> torch.Tensor:
        """Slots that may act when the prompt is over, of shape `(s,)`: any, as long as they may still be asked for."""
        lasts = (self.end == self.ENDLESS).any(0)
        return lasts if self.candidates is None else torch.ones_like(lasts)

    def _final_gates(self, lasts: torch.Tensor) -> torch.Tensor:
        return (self.gates * (self.end == self.ENDLESS) * (self.start < self.ENDLESS))[:, lasts]

    def decide(self, candidates: Candidates, relations: Relations) -> None:
        """
        Let each slot that waits take the edit that its prompt asks for, from the hidden states that were recorded.

        Of the edits of one subject, the one that is asked for first acts. Of several at one column it is the one with the
        highest score, or of those that come near it the one whose prompt shares most tokens. Where several subjects stand
        in one question, the highest score decides.
        """
        columns, score = candidates.scores(self.column, relations)
        if not len(columns):
            return
        score = score.masked_fill((self.start < self.ENDLESS)[..., None, None], -torch.inf)
        candidates.score = torch.maximum(candidates.score, score.amax(-1))
        score = score.masked_fill(score < candidates.threshold[..., None], -torch.inf)
        # Edits stand in the order of their wordings' likeness to the prompt: of near equals the first is taken.
        near = score >= score.amax(2, keepdim=True) - NEAR
        best = (near & torch.isfinite(score)).long().argmax(2)
        score = score.amax(2)
        if not torch.isfinite(score).any():
            return
        column = torch.isfinite(score).long().argmax(-1)  # the first one
        score = score.gather(2, column[..., None])[..., 0]
        start = torch.where(torch.isfinite(score), columns[column], self.ENDLESS)
        slot = torch.arange(score.shape[1], device=score.device)
        better = (score[:, None] > score[:, :, None]) | (
            (score[:, None] == score[:, :, None]) & (slot > slot[:, None])
        )
        beaten = (start[:, :, None] == start[:, None]) & better
        start = start.masked_fill(beaten.any(-1), self.ENDLESS)
        opens = start < self.ENDLESS
        expert = candidates.experts.gather(2, best.gather(2, column[..., None]))[..., 0]
        # In place: the route that is kept with the cache, and what is left of it for decoding, are to know.
        self.experts.copy_(torch.where(opens, expert, self.experts))
        self.start.copy_(torch.where(opens, start, self.start))
        later = torch.where(start[:, None] > self.start[:, :, None], start[:, None], self.ENDLESS).amin(-1)
        self.end.copy_(torch.minimum(self.end, later))
        self._tell_final()

    def _tell_final(self) -> None:
        if self.final is not None:
            lasts = self._lasts()
            self.final.experts.copy_(self.experts[:, lasts])
            self.final.gates.copy_(self._final_gates(lasts))

    def resume(self, earlier: Route, column: int) -> None:
        """Go on with what the first `column` columns of the same text have asked for."""
        mine, theirs = self.candidates, earlier.candidates
        if mine is None or theirs is None or len(self.start) != len(earlier.start):
            return
        same = (mine.named_at[:, :, None] == theirs.named_at[:, None]) & (earlier.start < column)[:, None]
        found, slot = (same & (self.start == self.ENDLESS)[..., None]).max(-1)
        self.experts.copy_(torch.where(found, earlier.experts.gather(1, slot), self.experts))
        self.start.copy_(torch.where(found, earlier.start.gather(1, slot), self.start))
        end = earlier.end.gather(1, slot)
        end = torch.where(found & (end < column), torch.minimum(end, self.end), self.end)
        self.end.copy_(end)
        self._tell_final()

    def at(self, column: int, num_columns: int = 1) -> Route:
        """The route as it applies to a forward pass over `num_columns` from `column` on."""
        if column > self.last_start and self.final is not None:
            return self.final if num_columns == 1 else replace(self.final, num_columns=num_columns)
        return replace(self, column=column, num_columns=num_columns)

    def repeat(self, batch: int) -> Route:
        """The route for a batch in which `generate` has repeated every row for its beams or return sequences."""
        times = batch // self.experts.shape[0]
        if times == 1:
            return self
        fields = ("experts", "gates", "start", "end")
        repeated = {name: getattr(self, name).repeat_interleave(times, 0) for name in fields}
        route = replace(self, candidates=self.candidates and self.candidates.repeat(times), **repeated)
        route.seal()
        return route
