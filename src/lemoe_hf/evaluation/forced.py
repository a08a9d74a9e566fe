"""Prompts with their targets behind them, as a model is scored on: teacher forcing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..editing.tokens import continuation
from ..generation import evaluating, pad_right, padding_of
from .metrics import token_accuracy


@dataclass(frozen=True)
class ForcedBatch:
    """
    Prompts and targets, right-padded.

    Axes: `b` texts, `t` columns, `v` vocabulary.

    Args:
        ids (`torch.Tensor` of shape `(b, t)`), mask (`torch.Tensor` of shape `(b, t)`): Tokens, and where there are any.
        columns (`list[int]`): Of each text, the column before its target, which predicts the first token of it.
        targets (`list[list[int]]`): Tokens of the targets.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    columns: list[int]
    targets: list[list[int]]

    def texts(self) -> list[list[int]]:
        """Tokens of each prompt and target."""
        return [row[keep.bool()].tolist() for row, keep in zip(self.ids, self.mask, strict=True)]

    @torch.no_grad()
    def logits(self, model: nn.Module) -> list[torch.Tensor]:
        """Of each text, logits of shape `(t, v)` at its prompt and target, but for the last token.

        The forward pass is told which tokens are the answer: they have no part in the routing.
        """
        device = next(model.parameters()).device
        labels = self.ids.masked_fill(self.mask == 0, -100)
        for row, column in enumerate(self.columns):
            labels[row, : column + 1] = -100
        inputs = {"input_ids": self.ids, "attention_mask": self.mask, "labels": labels}
        output = model(**{name: value.to(device) for name, value in inputs.items()}).logits
        ends = [column + len(target) for column, target in zip(self.columns, self.targets, strict=True)]
        return [row[:end] for row, end in zip(output, ends, strict=True)]


def forced_batches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], targets: Sequence[str], batch_size: int
) -> Iterator[ForcedBatch]:
    """
    Prompts and targets in batches, in their order.

    Raises:
        ValueError: If the tokenizer has no padding token.
    """
    pad = padding_of(tokenizer)
    for first in range(0, len(prompts), batch_size):
        part = slice(first, first + batch_size)
        before = [tokenizer(prompt.rstrip())["input_ids"] for prompt in prompts[part]]
        behind = [
            continuation(tokenizer, prompt.rstrip(), target.strip())
            for prompt, target in zip(prompts[part], targets[part], strict=True)
        ]
        texts = [ids + target for ids, target in zip(before, behind, strict=True)]
        ids, mask = pad_right(texts, pad, torch.device("cpu"))
        yield ForcedBatch(ids, mask, [len(ids) - 1 for ids in before], behind)


def teacher_forced(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    batch_size: int = 16,
) -> list[float]:
    """Of every target, the share of its tokens that is predicted behind its prompt."""
    with evaluating(model):
        return [
            token_accuracy(logits[column:].argmax(-1).tolist(), target)
            for batch in forced_batches(tokenizer, prompts, targets, batch_size)
            for logits, column, target in zip(batch.logits(model), batch.columns, batch.targets, strict=True)
        ]
