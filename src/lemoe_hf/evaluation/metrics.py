"""The measures of model editing, as pure functions of tokens, texts and logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest

import torch


def token_accuracy(predicted: Sequence[int], target: Sequence[int]) -> float:
    """Share of target tokens predicted under teacher forcing: the literature's reliability and generality.

    >>> token_accuracy([5, 1, 1], [5, 6, 7])
    0.3333333333333333
    """
    if not target:
        raise ValueError("A target without tokens has no accuracy.")
    return sum(a == b for a, b in zip(predicted, target, strict=True)) / len(target)


def starts_with(answer: str, target: str) -> bool:
    """Whether a freely generated answer begins with the target, ignoring case and space around it.

    >>> starts_with(" Yemen, of course", "yemen")
    True
    """
    return answer.strip().lower().startswith(target.strip().lower())


def equals(answer: str, target: str) -> bool:
    """Whether a freely generated answer is the target and no more, ignoring case and space around it."""
    return answer.strip().lower() == target.strip().lower()


def kl_divergence(base: torch.Tensor, edited: torch.Tensor) -> float:
    """Mean Kullback-Leibler divergence of the edited from the base model's next-token distributions, in nats.

    Args:
        base (`torch.Tensor` of shape `(t, v)`), edited (`torch.Tensor` of shape `(t, v)`): Logits.
    """
    p, q = base.float().log_softmax(-1), edited.float().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def perplexity(logits: torch.Tensor, target: Sequence[int]) -> float:
    """Of a target under teacher forcing, from logits of shape `(t, v)` that predict it.

    >>> round(perplexity(torch.zeros(3, 8), [5, 6, 7]), 6)
    8.0
    """
    labels = torch.tensor(target, device=logits.device)
    return torch.nn.functional.cross_entropy(logits.float(), labels).exp().item()


def agreement(base: Sequence[int], edited: Sequence[int], first: int = 10) -> float:
    """
    Share of the first greedy tokens that are the base model's, place by place; where one answer ends earlier, the places
    that only the other one has count as different.

    >>> agreement([5, 6, 7], [5, 6, 8, 9])
    0.5
    """
    pairs = list(zip_longest(base[:first], edited[:first]))
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else 1.0


def retention(before: Sequence[float], after: Sequence[float]) -> float:
    """Reliability of the same edits now, less what it was right after they were made: 0 if nothing was forgotten.

    >>> retention([1.0, 0.5], [1.0, 0.25])
    -0.125
    """
    if len(before) != len(after):
        raise ValueError(f"Retention compares the same edits; got {len(before)} before and {len(after)} after.")
    return mean(after) - mean(before)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each score, the mean over those that have it, in the order in which they first come.

    >>> means([{"a": 1.0}, {"a": 0.0, "b": 0.5}])
    {'a': 0.5, 'b': 0.5}
    """
    names = dict.fromkeys(name for score in scores for name in score)
    return {name: mean([score[name] for score in scores if name in score]) for name in names}
