"""Are targets predicted and answered: reliability, generality and portability, which differ in the prompts only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Literal

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..editing.tokens import continuation
from ..generation import answers
from .forced import forced_batches
from .metrics import equals, means, perplexity, starts_with, token_accuracy


Kind = Literal["prompt", "rephrase", "locality", "portability"]
# An edit, a prompt that measures it, and the answer, which may be unknown at locality prompts.
Probe = tuple[Edit, str, str | None]


def over_probes(
    edits: Sequence[Edit], kind: Kind, measure: Callable[[list[Probe]], Iterable[dict[str, float]]]
) -> list[dict[str, float]]:
    """Of every edit, the means over its probes of a kind; its own prompt is of the kind `"prompt"`."""
    probes: list[list[Probe]] = []
    for edit in edits:
        pairs = [(edit.prompt, edit.target_new)] if kind == "prompt" else edit.probes(kind)
        probes.append([(edit, prompt, answer) for prompt, answer in pairs])
    scores = iter(measure(list(chain(*probes))))
    return [means(list(islice(scores, len(of_edit)))) for of_edit in probes]


class Accuracy:
    """
    Measure of targets behind prompts of one kind, teacher-forced and by free generation.

    Args:
        name (`str`): Of the measure.
        kind (`str`): The edits' own prompts (`"prompt"`), or which of their probes.
        batch_size (`int`): Prompts at once.
    """

    def __init__(self, name: str, kind: Kind, batch_size: int):
        self.name, self.kind, self.batch_size = name, kind, batch_size

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit]
    ) -> list[dict[str, float]]:
        return over_probes(edits, self.kind, lambda probes: self._of_probes(model, tokenizer, probes))

    def _of_probes(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, probes: list[Probe]
    ) -> Iterator[dict[str, float]]:
        prompts, targets = [prompt for _, prompt, _ in probes], [target or "" for _, _, target in probes]
        forced = list(self._forced(model, tokenizer, prompts, targets))
        texts = free(model, tokenizer, prompts, targets, self.batch_size)
        for score, text, target in zip(forced, texts, targets, strict=True):
            begins, same = starts_with(text, target), equals(text, target)
            yield score | {f"free_{self.name}": float(begins), f"free_{self.name}_strict": float(same)}

    def _forced(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], targets: list[str]
    ) -> Iterator[dict[str, float]]:
        for batch in forced_batches(tokenizer, prompts, targets, self.batch_size):
            for logits, column, target in zip(batch.logits(model), batch.columns, batch.targets, strict=True):
                score = {self.name: token_accuracy(logits[column:].argmax(-1).tolist(), target)}
                yield score | ({"perplexity": perplexity(logits[column:], target)} if self.kind == "prompt" else {})


def free(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    targets: Sequence[str],
    batch_size: int,
) -> list[str]:
    """Greedy answers, up to the target's length and two tokens."""
    prompts = [prompt.rstrip() for prompt in prompts]
    bounds = [
        len(continuation(tokenizer, prompt, target.strip())) + 2
        for prompt, target in zip(prompts, targets, strict=True)
    ]
    return answers(model, tokenizer, prompts, bounds, batch_size)
