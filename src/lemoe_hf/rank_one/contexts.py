"""The texts that an edit is fitted on: its prompt, the prompt behind texts of the model's own, and what its subject is."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..editing.tokens import continuation
from ..moments import SubjectRow, check_subject, samples_of, subject_row


ESSENCE = "{} is a"  # what must stay as it was, of the subject


@dataclass(frozen=True)
class EditTexts:
    """
    Args:
        prompts (`list` of [`SubjectRow`]): The bare prompt, and the prompt in its contexts.
        targets (`list[list[int]]`): Tokens of the target behind each of them.
        essence ([`SubjectRow`]): What must stay as it was.
    """

    prompts: list[SubjectRow]
    targets: list[list[int]]
    essence: SubjectRow


def own_contexts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, contexts: tuple[tuple[int, int], ...], seed: int
) -> list[str]:
    """Beginnings of texts that a model makes up, of some lengths and numbers."""
    rows = [
        row
        for i, (length, number) in enumerate(contexts)
        for row in (samples_of(model, length * number, seed + i, length) if number else [])
    ]
    return [" ".join(str(tokenizer.decode(row, skip_special_tokens=True)).split()) for row in rows]


def texts_for(tokenizer: PreTrainedTokenizerBase, edit: Edit, contexts: list[str]) -> EditTexts:
    """
    Raises:
        ValueError: If the edit does not tell its subject, or its target has no tokens.
    """
    start, end = check_subject(edit)
    prompt, target = edit.prompt.rstrip(), edit.target_new.strip()
    prompts, targets = [], []
    for before in ["", *(f"{context}. " for context in contexts if context)]:
        prompts.append(subject_row(tokenizer, before + prompt, len(before) + start, len(before) + end))
        targets.append(continuation(tokenizer, before + prompt, target))
    if not targets[0]:
        raise ValueError(f"`target_new` {edit.target_new!r} of {edit.prompt!r} has no tokens in this tokenizer.")
    subject = prompt[start:end]
    return EditTexts(prompts, targets, subject_row(tokenizer, ESSENCE.format(subject), 0, len(subject)))
