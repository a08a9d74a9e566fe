"""Does a prompt ask of a subject what an edit is about, or something else?

An edit of Lyon's twin city must leave alone where Lyon is. How alike two prompts are does not tell: hidden states of one
subject are alike whatever is asked, and words differ from one phrasing to the next. But what is said beside the subject's name
tells, once it is known which words mean the same and how much each counts. That can be learned from the model's own input
embeddings, once for a base model, from questions that the package brings along: the same relation asked in many words.

Adapters from before look at hidden states as well. What is stored tells which of the two is meant: with an `emphasis` words
alone are read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from .frozen import Frozen


# Depth of the layers whose FFN's input adapters from before look at, as shares of the depth of the first bypass. At the last
# of them it is decided.
TAPS = (1 / 2, 3 / 4, 1)
# The mean of some ten words is that much smaller than one hidden state.
WORDS = 2.0
NEIGHBOURS = 30
# How much of what a question has in common with the nearest reference wordings is taken off its score.
BACKGROUND = 0.6
# Of scores of words: they are told in tenths of a cosine, so that those that are nearly alike are some tenths apart.
TENTHS = 10.0
# Logarithm of how much more, or less, than an indifferent word one may count.
LARGEST = 6.0


def features_of(hidden: list[torch.Tensor]) -> torch.Tensor:
    """Hidden states of several layers, each of shape `(..., d)`, as features of shape `(..., f)`."""
    return torch.cat([F.rms_norm(states.float(), states.shape[-1:]) for states in hidden], -1)


def words_of(embedded: torch.Tensor) -> torch.Tensor:
    """Input embeddings of tokens, of shape `(..., d)`, as features of the same shape: their means tell what is said."""
    return WORDS * F.rms_norm(embedded.float(), embedded.shape[-1:])


def vectors_of(
    embedded: torch.Tensor, directions: torch.Tensor, emphasis: torch.Tensor, counts: torch.Tensor
) -> torch.Tensor:
    """
    What wordings ask for, as unit vectors of shape `(n, k)`; 0 where nothing is said.

    Args:
        embedded (`torch.Tensor` of shape `(v, d)`): Input embeddings of tokens.
        directions (`torch.Tensor` of shape `(d, k)`), emphasis (`torch.Tensor` of shape `(d,)`): As of [`Relations`].
        counts (`torch.Tensor` of shape `(n, v)`): How often each token stands in each wording.
    """
    words = F.rms_norm(embedded.float(), embedded.shape[-1:])
    weight = (words @ emphasis).clamp(-LARGEST, LARGEST).exp()
    return F.normalize(counts @ (weight[:, None] * (words @ directions)), dim=-1)


class Relations(Frozen):
    """
    What each edit is about, and whether a prompt asks for that.

    Axes: `f` features, which are those of words, in adapters from before followed by those of hidden states; `k` directions in
    which relations differ; `n` reference prompts kept; `e` edits; `m` tokens.

    Buffers: `mean` (f; 0 for words alone), `directions` (f, k), `emphasis` (f; the logarithm of how much a word counts is the
    product with its embedding), `cohort` (n, k), `thresholds` (2; of questions and of beginnings of statements), `keys`
    (e, k), `edit` (e), `threshold` (e; of questions). In adapters from before: no `emphasis`, and in those without a
    [`Vocabulary`] `marks` (m; the tokens that end a question), `stops` (those that end any sentence), `continuing` (those with
    which a name goes on).
    """

    sizes = (
        "num_relation_features",
        "num_relation_prompts",
        "num_relation_marks",
        "num_relation_stops",
        "num_relation_continuing",
        "num_relation_keys",
        "num_relation_emphasis",
    )
    num_directions = 48

    mean: torch.Tensor
    directions: torch.Tensor
    emphasis: torch.Tensor
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
        num_emphasis: int = 0,
    ):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("directions", torch.zeros(num_features, self.num_directions, dtype=torch.bfloat16))
        self.register_buffer("emphasis", torch.zeros(num_emphasis))
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

    @property
    def is_of_words(self) -> bool:
        """Whether words alone are read, rather than hidden states as well."""
        return len(self.emphasis) > 0

    def learn(
        self, directions: torch.Tensor, emphasis: torch.Tensor, references: torch.Tensor, embedded: torch.Tensor
    ) -> None:
        """
        Take over what was learned.

        Args:
            directions (`torch.Tensor` of shape `(d, k)`), emphasis (`torch.Tensor` of shape `(d,)`): As above.
            references (`torch.Tensor` of shape `(n, v)`), embedded (`torch.Tensor` of shape `(v, d)`):
                How often each token stands in each reference wording, and the tokens' embeddings.
        """
        self.mean, self.emphasis = torch.zeros_like(emphasis), emphasis
        self.directions = directions.bfloat16()
        self.cohort = self.embed_words(embedded, references).bfloat16()

    # ------------------------------------------------------------------------------------------------------------- scoring

    def embed_words(self, embedded: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Wordings as unit vectors of shape `(n, k)`, of tokens and counts as in [`vectors_of`]."""
        home = self.mean.device
        return vectors_of(embedded.to(home), self.directions.float(), self.emphasis, counts.to(home))

    @property
    def allowance(self) -> float:
        """By how much the beginning of a statement is let through at a lower score than a question."""
        low, high = self.thresholds.flip(0).tolist()
        return high - low if self.is_of_words and math.isfinite(high - low) else 0.0

    def project(self, features: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Features from the `first` one on, of shape `(..., p)`, in the directions that tell: `(..., k)`."""
        part = slice(first, first + features.shape[-1])
        return (features.to(self.mean.device) - self.mean[part]) @ self.directions[part].float()

    def embed(self, features: torch.Tensor) -> torch.Tensor:
        """Features of shape `(..., f)`, of words and hidden states, as unit vectors of shape `(..., k)`."""
        return F.normalize(self.project(features), dim=-1)

    def score(self, keys: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """How surely prompts ask for the same thing: each of `(p, k)` against each of `(q, k)`, as `(p, q)`."""
        cosine = keys @ asked.T
        mean, deviation = self._nearest(asked)
        if self.is_of_words:
            return TENTHS * (cosine - BACKGROUND * mean)
        key_mean, key_deviation = self._nearest(keys)
        return ((cosine - key_mean[:, None]) / key_deviation[:, None] + (cosine - mean) / deviation) / 2

    def score_pairs(self, keys: torch.Tensor, asked: torch.Tensor, pair: torch.Tensor) -> torch.Tensor:
        """
        How surely prompts ask for what edits are about: keys of shape `(o, k)`, each against that of the prompts of shape
        `(p, k)` which `pair`, of shape `(o,)`, tells. Returns scores of shape `(o,)`.

        Of words it is the cosine in tenths, less a share of what the nearest reference wordings have in common with the
        prompt. In adapters from before it is the cosine in standard deviations above what those have in common with each of
        the two (adaptive symmetric normalisation, as in speaker recognition: Matejka et al., Interspeech 2017).
        """
        cosine = (keys * asked[pair]).sum(-1)
        mean, deviation = self._nearest(asked)
        if self.is_of_words:
            return TENTHS * (cosine - BACKGROUND * mean[pair])
        key_mean, key_deviation = self._nearest(keys)
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
