"""What is left of the base model's answers to questions that no edit is about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..generation import answers
from .digest import digest, digest_of_base, digest_of_tokenizer
from .evaluator import Evaluator
from .forced import forced_batches
from .journal import Journal
from .locality import logits_beside_base
from .metrics import agreement, kl_divergence


# Greedy tokens of an answer that are compared.
FIRST_TOKENS = 10


class Agreement:
    """
    Greedy answers to questions, against those of the base model, which are kept, and what comes next.

    Args:
        batch_size (`int`): Questions at once.
        base ([`Journal`]): Where the base model's answers are kept.
    """

    name = "same_subject"

    def __init__(self, batch_size: int, base: Journal):
        self.batch_size, self.base = batch_size, base

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]
    ) -> list[dict[str, float]]:
        of_base = digest_of_base(model)
        edited = answers(model, tokenizer, questions, FIRST_TOKENS, self.batch_size)
        base = self._base_answers(model, of_base, tokenizer, questions)
        divergences = self._divergences(model, of_base, tokenizer, questions)
        return [
            agreement_of(tokenizer, before, after) | {"same_subject_kl": divergence}
            for before, after, divergence in zip(base, edited, divergences, strict=True)
        ]

    def _divergences(
        self, model: PeftModel, of_base: str, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]
    ) -> Iterator[float]:
        for batch in forced_batches(tokenizer, questions, ["the"] * len(questions), self.batch_size):
            found = logits_beside_base(model, of_base, batch, self.base)
            for before, after, column in zip(*found, batch.columns, strict=True):
                yield kl_divergence(before[column : column + 1], after[column : column + 1])

    def _base_answers(
        self, model: PeftModel, of_base: str, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str]
    ) -> list[str]:
        of_both = digest(of_base, digest_of_tokenizer(tokenizer))
        keys = [digest(of_both, FIRST_TOKENS, question) for question in questions]
        if any(key not in self.base for key in keys):
            with model.disable_adapter():
                found = answers(model, tokenizer, questions, FIRST_TOKENS, self.batch_size)
            self.base.write(zip(keys, questions, found, strict=True))
        return [self.base[key] for key in keys]


def agreement_of(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> dict[str, float]:
    """How much of an answer is left in another."""
    old, new = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
    return {
        "same_subject_kept": agreement(old, new, FIRST_TOKENS),
        "same_subject_exact": float(before == after),
    }


class SameSubject(Evaluator):
    """
    How much of the base model's answers is left where the subjects of edits are asked something that no edit is about.

    | key | what |
    |---|---|
    | `same_subject_kept` | share of the first ten greedy tokens that are the base model's |
    | `same_subject_exact` | questions whose answer is the base model's in all of them |
    | `same_subject_kl` | divergence from the base model in the token that comes next, in nats |

    A figure is the mean over the questions; `num_questions` counts them.

    Args:
        questions (`Sequence[str]`): About the subjects of edits, but not about what was edited.
        batch_size (`int`, *optional*, defaults to 16): Questions at once.
        share_out (`bool`, *optional*, defaults to `False`), work (`str` or `Path`, *optional*): As in [`Evaluator`].
    """

    counts = "num_questions"
    protocol = "after all edits; by greedy free generation, beside the base model's"

    def __init__(
        self,
        questions: Sequence[str],
        batch_size: int = 16,
        share_out: bool = False,
        work: str | Path | None = None,
    ):
        measures = [Agreement(batch_size, Journal(work, "base"))]
        super().__init__(questions, measures, batch_size, share_out, work)
