"""
Learn from wordings of many relations which words tell them apart, and how much each word counts.

Axes: `v` tokens of the wordings, `d` of their embeddings, `n` wordings, `k` directions, `b` wordings of one step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ..routing.relations import Relations, vectors_of
from ..routing.router import counted


# Of a step: relations, and wordings of each. A third of the relations are asked of one kind of subject: they are near ones.
RELATIONS, WORDINGS = 48, 8
STEPS, LEARNING_RATE, WEIGHT_DECAY, WARMUP = 400, 3e-3, 0.3, 20
# Emphasis is learned that much slower than directions.
SLOWER = 10.0
SHARPNESS = 10.0
# Wordings that are kept to compare questions with.
REFERENCES = 4000
FOLDS = 3
# Of a relation that was held out, the share of what else is asked of the same kind of subject that the threshold turns away:
# of questions, and of beginnings of statements, in which fewer words tell.
TURNED_AWAY = 0.96, 0.92


@dataclass(frozen=True)
class Wordings:
    """
    Ways to ask for relations, without the subjects.

    Args:
        embedded (`torch.Tensor` of shape `(v, d)`): Embeddings of the tokens that stand in any of them.
        counts (`torch.Tensor` of shape `(n, v)`): How often each stands in each.
        relation (`torch.Tensor` of shape `(n,)`): Index of what is asked for.
        kind (`torch.Tensor` of shape `(n,)`): Index of the kind of subject it is asked of.
        is_question (`torch.Tensor` of shape `(n,)`): Whether it is a question rather than the beginning of a statement.
    """

    embedded: torch.Tensor
    counts: torch.Tensor
    relation: torch.Tensor
    kind: torch.Tensor
    is_question: torch.Tensor

    @classmethod
    def of(
        cls,
        words: Sequence[list[int]],
        embed: Callable[[torch.Tensor], torch.Tensor],
        relation: Sequence[int],
        kind: Sequence[int],
        is_question: Sequence[bool],
    ) -> Wordings:
        """Of lists of tokens, by the input embeddings of tokens."""
        embedded, counts = counted(words, embed)
        device = embedded.device
        return cls(embedded, counts, *(torch.tensor(each, device=device) for each in (relation, kind, is_question)))

    def __getitem__(self, rows: torch.Tensor) -> Wordings:
        labels = (each[rows] for each in (self.counts, self.relation, self.kind, self.is_question))
        return Wordings(self.embedded, *labels)


def fit(relations: Relations, wordings: Wordings, steps: int = STEPS) -> None:
    """Learn directions and emphasis, and from which score on two wordings ask for the same: on relations held out of it."""
    order = torch.randperm(int(wordings.relation.max()) + 1, generator=torch.Generator().manual_seed(0))
    scores: list[tuple[torch.Tensor, torch.Tensor]] = []
    for fold in range(FOLDS):
        held_out = torch.isin(wordings.relation, order[fold::FOLDS].to(wordings.relation.device))
        learned = fitted(Relations().to(wordings.embedded.device), wordings[~held_out], steps // 2)
        scores.append(of_others(learned, wordings[held_out]))
    fitted(relations, wordings, steps)
    for form, (share, found) in enumerate(zip(TURNED_AWAY, zip(*scores, strict=True), strict=True)):
        ordered = torch.cat(found).sort().values
        relations.thresholds[form] = ordered[int(share * (len(ordered) - 1))] if len(ordered) else -torch.inf


def fitted(relations: Relations, wordings: Wordings, steps: int) -> Relations:
    """Relations that have learned from wordings, some of which they keep for reference."""
    kept = torch.randperm(len(wordings.relation), generator=torch.Generator().manual_seed(0))[:REFERENCES]
    relations.learn(*learn(wordings, steps), wordings.counts[kept.to(wordings.counts.device)], wordings.embedded)
    return relations


def of_others(relations: Relations, wordings: Wordings) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of wordings against others of one kind of subject that ask for something else: questions, and statements."""
    found = relations.embed_words(wordings.embedded, wordings.counts)
    others = (wordings.kind[:, None] == wordings.kind) & (wordings.relation[:, None] != wordings.relation)
    score = relations.score(found, found)
    return score[others & wordings.is_question], score[others & ~wordings.is_question]


@torch.enable_grad()
def learn(wordings: Wordings, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Directions of shape `(d, k)` and emphasis of shape `(d,)`, by the supervised contrastive loss (Khosla et al., NeurIPS
    2020, Eq. 2): wordings of one relation are to be nearer to each other than to those of others.
    """
    draw = torch.Generator().manual_seed(0)
    device, width = wordings.embedded.device, wordings.embedded.shape[1]
    directions = torch.randn(width, Relations.num_directions, generator=draw).div(math.sqrt(width)).to(device)
    emphasis, sharpness = torch.zeros(width, device=device), torch.tensor(math.log(SHARPNESS), device=device)
    parameters = [each.requires_grad_() for each in (directions, emphasis, sharpness)]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = Batches(wordings, draw)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / WARMUP) * (1 - step / steps)
        rows = batches.next().to(device)
        counts = wordings.counts[rows]
        said = counts.any(0)
        found = vectors_of(wordings.embedded[said], directions, emphasis / SLOWER, counts[:, said])
        loss = contrastive(found, wordings.relation[rows], sharpness.exp())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return directions.detach(), emphasis.detach() / SLOWER


def contrastive(found: torch.Tensor, relation: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    """Of unit vectors of shape `(b, k)`."""
    logits = sharpness * (found @ found.T)
    itself = torch.eye(len(found), dtype=torch.bool, device=found.device)
    log_share = logits - logits.masked_fill(itself, -torch.inf).logsumexp(-1, keepdim=True)
    alike = (relation[:, None] == relation) & ~itself
    count = alike.sum(-1)
    return -((log_share * alike).sum(-1)[count > 0] / count[count > 0]).mean()


class Batches:
    """Wordings of one step after the other: of some kinds of subjects, relations, and of each relation some wordings."""

    def __init__(self, wordings: Wordings, draw: torch.Generator):
        relation, kind = wordings.relation.cpu(), wordings.kind.cpu()
        self.draw = draw
        self.rows = {each: (relation == each).nonzero()[:, 0] for each in relation.unique().tolist()}
        self.of_kind: dict[int, list[int]] = {}
        for each, rows in self.rows.items():
            self.of_kind.setdefault(int(kind[rows[0]]), []).append(each)
        self.kinds = sorted(self.of_kind)
        self.sizes = torch.tensor([float(len(self.of_kind[each])) for each in self.kinds])

    def next(self) -> torch.Tensor:
        chosen: dict[int, None] = {}
        for _ in range(RELATIONS):
            kind = self.kinds[int(torch.multinomial(self.sizes, 1, generator=self.draw))]
            chosen |= dict.fromkeys(self._some(torch.tensor(self.of_kind[kind]), RELATIONS // 3).tolist())
            if len(chosen) >= RELATIONS:
                break
        return torch.cat([self._some(self.rows[each], WORDINGS) for each in list(chosen)[:RELATIONS]])

    def _some(self, rows: torch.Tensor, num: int) -> torch.Tensor:
        return rows[torch.randperm(len(rows), generator=self.draw)[:num]]
