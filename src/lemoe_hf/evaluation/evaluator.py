"""Measure an edited model: on the final model, after all edits, under both protocols."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..editing.parallel import by_all_processes
from ..editing.tokens import continuation
from ..generation import answers, evaluating
from .metrics import equals, kl_divergence, mean, perplexity, starts_with, token_accuracy


MEASURES = (
    "reliability",
    "free_reliability",
    "free_reliability_strict",
    "perplexity",
    "generality",
    "free_generality",
    "free_generality_strict",
    "locality",
    "locality_exact",
    "locality_kl",
)


class EditEvaluator:
    """
    Reliability, generality and locality of edits.

    | key | what |
    |---|---|
    | `reliability`, `generality` | share of target tokens predicted behind prompt and rephrasing, teacher-forced |
    | `free_reliability`, `free_generality` | greedy answers, up to target length + 2 tokens, that begin with it |
    | `free_reliability_strict`, `free_generality_strict` | the same answers, equal to the target |
    | `perplexity` | mean perplexity of the targets behind their prompts |
    | `locality` | share of most likely tokens, at the locality answers, that are the base model's |
    | `locality_exact` | share of locality prompts with logits equal to the base model's, bit for bit |
    | `locality_kl` | mean divergence from the base model there, in nats |
    | `num_edits` | edits measured |

    Args:
        edits (`Sequence` of [`Edit`]): What to measure. A measure covers the edits that have what it needs.
        batch_size (`int`, *optional*, defaults to 16): Prompts at once.
        share_out (`bool`, *optional*, defaults to `False`):
            Share the edits out among the processes of `accelerate launch`, all of which must make the call; each of them
            returns the measures of all edits.
    """

    def __init__(self, edits: Sequence[Edit], batch_size: int = 16, share_out: bool = False):
        self.edits, self.batch_size, self.share_out = list(edits), batch_size, share_out

    def __call__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        def score(edits: Sequence[Edit]) -> list[dict[str, float]]:
            return self.scores(model, tokenizer, edits)

        with evaluating(model):
            scores = by_all_processes(self.edits, score) if self.share_out else score(self.edits)
        measures: dict[str, float] = {"num_edits": len(scores)}
        for name in MEASURES:
            values = [of_edit[name] for of_edit in scores if name in of_edit]
            if values:
                measures[name] = mean(values)
        return measures

    def scores(self, model, tokenizer, edits: Sequence[Edit]) -> list[dict[str, float]]:
        """Of every edit, the measures that it has what is needed for."""
        scores: list[dict[str, float]] = [{} for _ in edits]
        for name, key in (("reliability", "prompt"), ("generality", "rephrase_prompt")):
            measured = [i for i, edit in enumerate(edits) if getattr(edit, key)]
            prompts, targets = [getattr(edits[i], key) for i in measured], [edits[i].target_new for i in measured]
            forced = list(self.forced(model, tokenizer, prompts, targets))
            texts = self.free(model, tokenizer, prompts, targets)
            for i, (share, surprise), text, target in zip(measured, forced, texts, targets, strict=True):
                scores[i][name] = share
                if name == "reliability":
                    scores[i]["perplexity"] = surprise
                scores[i][f"free_{name}"] = starts_with(text, target)
                scores[i][f"free_{name}_strict"] = equals(text, target)
        measured = [i for i, edit in enumerate(edits) if edit.locality_prompt]
        local = self.locality(model, tokenizer, [edits[i] for i in measured])
        for i, score in zip(measured, local, strict=True):
            scores[i].update(score)
        return scores

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

    def forced(self, model, tokenizer, prompts, targets) -> Iterator[tuple[float, float]]:
        """Token accuracy and perplexity of every target under teacher forcing."""
        for logits, column, target in self.logits(model, tokenizer, prompts, targets):
            predicting = logits[column:]
            yield token_accuracy(predicting.argmax(-1).tolist(), target), perplexity(predicting, target)

    def teacher_forced(self, model, tokenizer, prompts, targets) -> list[float]:
        return [share for share, _ in self.forced(model, tokenizer, prompts, targets)]

    def free(self, model, tokenizer, prompts, targets) -> list[str]:
        bounds = [
            len(continuation(tokenizer, prompt.rstrip(), target.strip())) + 2
            for prompt, target in zip(prompts, targets, strict=True)
        ]
        return answers(model, tokenizer, [prompt.rstrip() for prompt in prompts], bounds, self.batch_size)

    def locality(self, model, tokenizer, edits: Sequence[Edit]) -> Iterator[dict[str, float]]:
        prompts = [edit.locality_prompt for edit in edits]
        targets = [edit.locality_ground_truth or "the" for edit in edits]
        edited = self.logits(model, tokenizer, prompts, targets)
        # Batch by batch, so that no more than two batches of logits are held.
        base = self.base_logits(model, tokenizer, prompts, targets)
        for (after, column, _), before in zip(edited, base, strict=True):
            predicted, expected = (logits[column:].argmax(-1).tolist() for logits in (after, before))
            yield {
                "locality": token_accuracy(predicted, expected),
                "locality_exact": torch.equal(after, before),
                "locality_kl": kl_divergence(before[column:], after[column:]),
            }

    def base_logits(self, model, tokenizer, prompts, targets):
        for first in range(0, len(prompts), self.batch_size):
            chunk = slice(first, first + self.batch_size)
            with model.disable_adapter():
                rows = list(self.logits(model, tokenizer, prompts[chunk], targets[chunk]))
            yield from (logits for logits, _, _ in rows)
