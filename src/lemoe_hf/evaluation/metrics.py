"""The measures of model editing, as pure functions of tokens, texts and logits."""

from __future__ import annotations

from collections.abc import Sequence

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


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
