"""Does a prompt ask of a subject what an edit is about, or something else?

An edit of Lyon's twin city must leave alone where Lyon is. How alike two prompts are does not tell: hidden states of one
subject are alike whatever is asked, and words differ from one phrasing to the next. But which directions of both tell
relations apart can be learned, once for a base model, from questions that the package brings along: the same relation
asked of many subjects in many words. What is said beside the subject's name, and what the model has made of it at the end
of the question, each tell most of it; together they tell more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .frozen import Frozen


# Depth of the layers whose FFN's input is looked at, as shares of the depth of the first bypass.
TAPS = (1 / 2, 3 / 4, 1)
# The mean of some ten words is that much smaller than one hidden state.
WORDS = 2.0
# Of a held-out relation's questions to one kind of subject, the share that the threshold turns away.
TURNED_AWAY = 0.93
RIDGE, FOLDS, NEIGHBOURS = 0.3, 3, 30


@dataclass(frozen=True)
class LabelledPrompts:
    """
    Prompts, and what they ask for.

    Args:
        features (`torch.Tensor` of shape `(n, f)`): From [`words_of`] and [`features_of`], side by side.
        relation (`torch.Tensor` of shape `(n,)`): Index of what is asked for.
        kind (`torch.Tensor` of shape `(n,)`): Index of the kind of subject it is asked of.
        is_question (`torch.Tensor` of shape `(n,)`):
            Whether it is a question rather than the beginning of a statement: the threshold is that of questions.
    """

    features: torch.Tensor
    relation: torch.Tensor
    kind: torch.Tensor
    is_question: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> LabelledPrompts:
        return LabelledPrompts(self.features[rows], self.relation[rows], self.kind[rows], self.is_question[rows])


def features_of(hidden: list[torch.Tensor]) -> torch.Tensor:
    """Hidden states of several layers, each of shape `(..., d)`, as features of shape `(..., f)`."""
    return torch.cat([F.rms_norm(states.float(), states.shape[-1:]) for states in hidden], -1)


def words_of(embedded: torch.Tensor) -> torch.Tensor:
    """Input embeddings of tokens, of shape `(..., d)`, as features of the same shape: their means tell what is said."""
    return WORDS * F.rms_norm(embedded.float(), embedded.shape[-1:])


class Relations(Frozen):
    """
    What each edit is about, and whether a prompt asks for that.

    Axes: `f` features, first those of words and then those of hidden states; `k` directions in which relations differ;
    `n` reference prompts kept; `e` edits; `m` tokens.

    Buffers: `mean` (f), `directions` (f, k), `cohort` (n, k), `thresholds` (2, equal; they were of questions and of
    statements, and loaders that go by the config alone expect two), `keys` (e, k), `edit` (e), `threshold` (e). In adapters
    from before there was a [`Vocabulary`]: `marks` (m; the tokens that end a question), `stops` (those that end any sentence),
    `continuing` (those with which a name goes on).
    """

    sizes = (
        "num_relation_features",
        "num_relation_prompts",
        "num_relation_marks",
        "num_relation_stops",
        "num_relation_continuing",
        "num_relation_keys",
    )
    num_directions = 48

    mean: torch.Tensor
    directions: torch.Tensor
    cohort: torch.Tensor
    thresholds: torch.Tensor
    marks: torch.Tensor
    stops: torch.Tensor
    continuing: torch.Tensor
    keys: torch.Tensor
    edit: torch.Tensor
    threshold: torch.Tensor

    def __init__(
        self,
        num_features: int = 0,
        num_prompts: int = 0,
        num_marks: int = 0,
        num_stops: int = 0,
        num_continuing: int = 0,
        num_keys: int = 0,
    ):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("directions", torch.zeros(num_features, self.num_directions, dtype=torch.bfloat16))
        self.register_buffer("cohort", torch.zeros(num_prompts, self.num_directions, dtype=torch.bfloat16))
        self.register_buffer("thresholds", torch.zeros(2))
        self.register_buffer("marks", torch.zeros(num_marks, dtype=torch.int32))
        self.register_buffer("stops", torch.zeros(num_stops, dtype=torch.int32))
        self.register_buffer("continuing", torch.zeros(num_continuing, dtype=torch.int32))
        self.register_buffer("keys", torch.zeros(num_keys, self.num_directions, dtype=torch.bfloat16))
        self.register_buffer("edit", torch.zeros(num_keys, dtype=torch.int32))
        self.register_buffer("threshold", torch.zeros(num_keys))

    def __len__(self) -> int:
        return len(self.edit)

    @property
    def is_fitted(self) -> bool:
        return len(self.mean) > 0

    # ------------------------------------------------------------------------------------------------------------ learning

    def fit(self, prompts: LabelledPrompts, num_prompts: int = 4000) -> None:
        """
        Learn in which directions relations differ, and from which score on two prompts ask for the same thing.

        Linear discriminant analysis (Fisher 1936): within-relation whitening, then the directions in which the means
        of the relations differ most. Thresholds are set on relations that the directions were not learned from.
        """
        scores = []
        order = torch.randperm(int(prompts.relation.max()) + 1, generator=torch.Generator().manual_seed(0))
        for fold in range(FOLDS):
            held_out = torch.isin(prompts.relation, order[fold::FOLDS].to(prompts.relation.device))
            self._learn(prompts[~held_out], num_prompts)
            tested = prompts[held_out]
            embedded = self.embed(tested.features)
            score = self.score(embedded, embedded)
            others = (tested.kind[:, None] == tested.kind) & (tested.relation[:, None] != tested.relation)
            scores.append(score[others & tested.is_question[:, None]])
        ordered = torch.cat(scores).sort().values
        self.thresholds.fill_(ordered[int(TURNED_AWAY * (len(ordered) - 1))] if len(ordered) else -torch.inf)
        self._learn(prompts, num_prompts)

    def _learn(self, prompts: LabelledPrompts, num_prompts: int) -> None:
        relation = prompts.relation.unique(return_inverse=True)[1]
        self.mean = prompts.features.mean(0)
        x = prompts.features - self.mean
        count = torch.bincount(relation)[:, None]
        means = x.new_zeros(len(count), x.shape[1]).index_add(0, relation, x) / count
        within = x - means[relation]
        covariance = within.T @ within / len(within)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean() + 1e-6)
        root = torch.linalg.cholesky(covariance)
        whitened = torch.linalg.solve_triangular(root, means.T, upper=False)
        directions = torch.linalg.svd(whitened, full_matrices=False)[0][:, : self.num_directions]
        directions = torch.linalg.solve_triangular(root.T, directions, upper=True)
        directions = F.pad(directions, (0, self.num_directions - directions.shape[1]))
        self.directions = (directions / directions.abs().max()).bfloat16()
        kept = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:num_prompts].to(x.device)
        self.cohort = self.embed(prompts.features[kept]).bfloat16()

    # ------------------------------------------------------------------------------------------------------------- scoring

    def project(self, features: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Features from the `first` one on, of shape `(..., p)`, in the directions that tell: `(..., k)`."""
        part = slice(first, first + features.shape[-1])
        return (features.to(self.mean.device) - self.mean[part]) @ self.directions[part].float()

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Features of shape `(..., f)` as unit vectors of shape `(..., k)`."""
        return F.normalize(self.project(features), dim=-1)

    def score(self, keys: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """How surely prompts ask for the same thing: each of `(p, k)` against each of `(q, k)`, as `(p, q)`."""
        cosine = keys @ asked.T
        (key_mean, key_deviation), (mean, deviation) = map(self._nearest, (keys, asked))
        return ((cosine - key_mean[:, None]) / key_deviation[:, None] + (cosine - mean) / deviation) / 2

    def score_pairs(self, keys: torch.Tensor, asked: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """
        How surely prompts ask for what edits are about: keys of shape `(o, k)`, each against that of the prompts of shape
        `(p, k)` which `pair`, of shape `(o,)`, tells. Returns scores of shape `(o,)`.

        The cosine, in standard deviations above what the nearest reference prompts have in common with each of the two
        (adaptive symmetric normalisation, as in speaker recognition: Matejka et al., Interspeech 2017).
        """
        cosine = (keys * asked[pair]).sum(-1)
        (key_mean, key_deviation), (mean, deviation) = map(self._nearest, (keys, asked))
        return ((cosine - key_mean) / key_deviation + (cosine - mean[pair]) / deviation[pair]) / 2

    def _nearest(self, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cosine = embedded @ self.cohort.float().T
        nearest = cosine.topk(min(NEIGHBOURS, cosine.shape[-1]), dim=-1).values
        return nearest.mean(-1), nearest.std(-1) + 1e-6

    # ---------------------------------------------------------------------------------------------------------------- keys

    def add(self, edits: list[int], embedded: torch.Tensor) -> None:
        """Append the keys, of shape `(e, k)`, of new edits; those already stored stay as they are."""
        self.append("keys", embedded)
        self.append("edit", torch.tensor(edits, dtype=torch.int32))
        self.append("threshold", self.thresholds[:1].expand(len(edits)))

    def remove(self, edit: int) -> None:
        keep = self.edit != edit
        self.keys, self.edit, self.threshold = self.keys[keep], self.edit[keep], self.threshold[keep]

    def rows_of(self, edits: torch.Tensor) -> torch.Tensor:
        """Rows of the keys of edits, -1 for edits without one."""
        if not len(self):
            return torch.full_like(edits, -1)
        row = torch.searchsorted(self.edit, edits.to(self.edit.dtype)).clamp(max=len(self) - 1)
        return torch.where(self.edit[row] == edits, row, -1)
