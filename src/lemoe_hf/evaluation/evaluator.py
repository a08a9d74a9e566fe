"""Measure an edited model: on the final model, after all edits, under both protocols."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..editing.tokens import continuation
from ..generation import answers, evaluating
from .metrics import equals, kl_divergence, mean, starts_with, token_accuracy


class EditEvaluator:
    """
    Reliability, generality and locality of edits.

    | key | what |
    |---|---|
    | `reliability`, `generality` | share of target tokens predicted behind prompt and rephrasing, teacher-forced |
    | `free_reliability`, `free_generality` | greedy answers, up to target length + 2 tokens, that begin with it |
    | `free_reliability_strict`, `free_generality_strict` | the same answers, equal to the target |
    | `locality` | share of most likely tokens, at the locality answers, that are the base model's |
    | `locality_exact` | share of locality prompts with logits equal to the base model's, bit for bit |
    | `locality_kl` | mean divergence from the base model there, in nats |
    | `num_edits` | edits measured |

    Args:
        edits (`Sequence` of [`Edit`]): What to measure. A measure covers the edits that have what it needs.
        batch_size (`int`, *optional*, defaults to 16): Prompts at once.
    """

    def __init__(self, edits: Sequence[Edit], batch_size: int = 16):
        self.edits, self.batch_size = list(edits), batch_size

    def __call__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        with evaluating(model):
            return self._measure(model, tokenizer)

    def _measure(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        measures: dict[str, float] = {"num_edits": len(self.edits)}
        rephrased = [edit for edit in self.edits if edit.rephrase_prompt]
        for name, edits, prompts in (
            ("reliability", self.edits, [edit.prompt for edit in self.edits]),
            ("generality", rephrased, [edit.rephrase_prompt for edit in rephrased]),
        ):
            if not edits:
                continue
            targets = [edit.target_new for edit in edits]
            measures[name] = mean(self.teacher_forced(model, tokenizer, prompts, targets))
            texts = self.free(model, tokenizer, prompts, targets)
            pairs = list(zip(texts, targets, strict=True))
            measures[f"free_{name}"] = mean([starts_with(*pair) for pair in pairs])
            measures[f"free_{name}_strict"] = mean([equals(*pair) for pair in pairs])
        measures.update(self.locality(model, tokenizer))
        return measures

    def batches(self, tokenizer, prompts, targets):
        """Right-padded texts, of shape `(b, t)`, with the column and the tokens of each target."""
        for first in range(0, len(prompts), self.batch_size):
            rows = []
            for prompt, target in zip(
                prompts[first : first + self.batch_size], targets[first : first + self.batch_size], strict=True
            ):
                ids = tokenizer(prompt.rstrip())["input_ids"]
                rows.append((ids, continuation(tokenizer, prompt.rstrip(), target.strip())))
            width = max(len(ids) + len(target) for ids, target in rows)
            texts = [
                ids + target + [tokenizer.pad_token_id] * (width - len(ids) - len(target)) for ids, target in rows
            ]
            mask = [[1] * (len(ids) + len(t)) + [0] * (width - len(ids) - len(t)) for ids, t in rows]
            yield torch.tensor(texts), torch.tensor(mask), [(len(ids) - 1, target) for ids, target in rows]

    @torch.no_grad()
    def logits(self, model, tokenizer, prompts, targets):
        """For every text, logits of shape `(t, v)` at its prompt and target, and the column before its target.

        The forward pass is told which tokens are the answer: they have no part in the routing.
        """
        device = model.get_input_embeddings().weight.device
        for ids, mask, spans in self.batches(tokenizer, prompts, targets):
            labels = ids.masked_fill(mask == 0, -100)
            for row, (column, _) in enumerate(spans):
                labels[row, : column + 1] = -100
            inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            output = model(**{name: value.to(device) for name, value in inputs.items()}).logits
            for row, (column, target) in enumerate(spans):
                yield output[row, : column + len(target)], column, target

    def teacher_forced(self, model, tokenizer, prompts, targets) -> list[float]:
        return [
            token_accuracy(logits[column:].argmax(-1).tolist(), target)
            for logits, column, target in self.logits(model, tokenizer, prompts, targets)
        ]

    def free(self, model, tokenizer, prompts, targets) -> list[str]:
        bounds = [
            len(continuation(tokenizer, prompt.rstrip(), target.strip())) + 2
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        return answers(model, tokenizer, [prompt.rstrip() for prompt in prompts], bounds, self.batch_size)

    def locality(self, model, tokenizer) -> dict[str, float]:
        edits = [edit for edit in self.edits if edit.locality_prompt]
        if not edits:
            return {}
        prompts = [edit.locality_prompt for edit in edits]
        targets = [edit.locality_ground_truth or "the" for edit in edits]
        same, exact, divergence = [], [], []
        edited = self.logits(model, tokenizer, prompts, targets)
        # Batch by batch, so that no more than two batches of logits are held.
        base = self.base_logits(model, tokenizer, prompts, targets)
        for (after, column, _), before in zip(edited, base, strict=True):
            same.append(token_accuracy(after[column:].argmax(-1).tolist(), before[column:].argmax(-1).tolist()))
            exact.append(torch.equal(after, before))
            divergence.append(kl_divergence(before[column:], after[column:]))
        return {"locality": mean(same), "locality_exact": mean(exact), "locality_kl": mean(divergence)}

    def base_logits(self, model, tokenizer, prompts, targets):
        for first in range(0, len(prompts), self.batch_size):
            chunk = slice(first, first + self.batch_size)
            with model.disable_adapter():
                rows = list(self.logits(model, tokenizer, prompts[chunk], targets[chunk]))
            yield from (logits for logits, _, _ in rows)
