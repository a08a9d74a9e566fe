"""Text to tokens, for an edit: its prompt, its target, its subject, and the anchors that it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..data.reference import reference_prompts
from ..generation import pad_right
from ..routing.anchors import LOWEST_THRESHOLD, Anchor, Anchors


@dataclass(frozen=True)
class TokenizedEdit:
    """
    Args:
        prompt (`list[int]`): Tokens as `generate` would see them, with those that the tokenizer puts before a text.
        target (`list[int]`): Tokens of the answer.
        first (`int`): Column of the subject's first token.
        last (`int`): Column of the subject's last token.
        spans (`list[tuple[tuple[int, ...], bool, int]]`): What to look for in other prompts: tokens, whether they are
            the whole prompt, and the column within them from which on the expert acts.
        contexts (`list[tuple[list[int], list[int], bool]]`): Prompt and target again, in other surroundings, and whether
            they hold the whole prompt rather than the subject alone.
        targets (`tuple[tuple[int, ...], ...]`): Tokens of the answer, in each way in which it may be cut into them.
    """

    prompt: list[int]
    target: list[int]
    first: int
    last: int
    spans: list[tuple[tuple[int, ...], bool, int]]
    contexts: list[tuple[list[int], list[int], bool]]
    targets: tuple[tuple[int, ...], ...]


def continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: str, target: str, separator: str = " ", special: bool = True
) -> list[int]:
    """Tokens of `target` behind `prompt`; `special` as in the tokenizer's `add_special_tokens`."""
    before = tokenizer(prompt, add_special_tokens=special)["input_ids"]
    whole = tokenizer(prompt + separator + target, add_special_tokens=special)["input_ids"]
    if whole[: len(before)] == before:
        return whole[len(before) :]
    return tokenizer(separator + target, add_special_tokens=False)["input_ids"]


def tokenize_edits(
    tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit], max_length: int, contexts: Sequence[str] = ()
) -> list[TokenizedEdit]:
    """
    Edits that are to be made together, as of [`tokenize_edit`].

    Raises:
        TypeError: If one of them is no [`Edit`].
        ValueError: If there are none, two of them give one prompt different targets, or one cannot be made.
    """
    if not edits:
        raise ValueError("There are no edits to make: the list is empty.")
    wrong = next((edit for edit in edits if not isinstance(edit, Edit)), None)
    if wrong is not None:
        raise TypeError(f"Edits must be lemoe_hf.Edit objects; got {type(wrong).__name__}: {wrong!r}.")
    pair = contradiction(edits)
    if pair:
        raise ValueError(
            f"The prompt {pair[1].prompt!r} is in this batch twice, with the targets {pair[0].target_new!r} and "
            f"{pair[1].target_new!r}. Keep one, or edit them one after the other: the later one wins."
        )
    return [tokenize_edit(tokenizer, edit, max_length, contexts) for edit in edits]


def contradiction(edits: Sequence[Edit]) -> tuple[Edit, Edit] | None:
    """The first two edits that give one prompt different targets."""
    first: dict[str, Edit] = {}
    for edit in edits:
        other = first.setdefault(edit.prompt.strip(), edit)
        if other.target_new.strip() != edit.target_new.strip():
            return other, edit
    return None


def tokenize_edit(
    tokenizer: PreTrainedTokenizerBase, edit: Edit, max_length: int, contexts: Sequence[str] = ()
) -> TokenizedEdit:
    """
    Args:
        max_length (`int`): Tokens that the model's context holds; a context that does not fit is left out.
        contexts (`Sequence[str]`): As in [`EditingArguments`].

    Raises:
        ValueError: If the target has no tokens, or prompt, target and end are longer than `max_length` tokens.
    """
    prompt = edit.prompt.rstrip()
    ids = tokenizer(prompt)["input_ids"]
    target = continuation(tokenizer, prompt, edit.target_new.strip())
    if not target:
        raise ValueError(f"`target_new` {edit.target_new!r} of {edit.prompt!r} has no tokens in this tokenizer.")
    if len(ids) + len(target) + 1 > max_length:
        raise ValueError(
            f"The edit {edit.prompt[:60]!r}... has {len(ids)} tokens and {len(target)} for its target, and there is "
            f"the end of the text; the model's context holds {max_length}. Shorten the prompt."
        )
    plain = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    lead = leading(ids, plain)
    span = edit.subject_span()
    first, last = (0, len(plain) - 1) if span is None else columns(tokenizer, prompt, plain, *span)
    spans = {spelled: (True, len(spelled) - 1) for spelled in (tuple(plain), *spellings(tokenizer, prompt))}
    if span is not None:
        subject = prompt[slice(*span)]
        found = tuple(plain[first : last + 1])
        for spelled in (found, *spellings(tokenizer, subject), *spellings(tokenizer, subject.lower())):
            spans.setdefault(spelled, (False, len(spelled) - 1))
    elsewhere = [row for row in in_contexts(tokenizer, edit, contexts) if len(row[0]) + len(row[1]) + 1 <= max_length]
    anchors = [(tokens, *rest) for tokens, rest in spans.items() if tokens]
    answers = (tuple(target), *spellings(tokenizer, edit.target_new.strip()), *(tuple(row[1]) for row in elsewhere))
    return TokenizedEdit(ids, target, lead + first, lead + last, anchors, elsewhere, tuple(dict.fromkeys(answers)))


# What stands before an edit's prompt in a chat.
CHATS: dict[str, list[dict[str, str]]] = {
    "chat": [],
    "conversation": [
        {"role": "user", "content": "What do you usually have for breakfast?"},
        {"role": "assistant", "content": "Some bread with butter, and a cup of tea."},
    ],
}


def in_contexts(
    tokenizer: PreTrainedTokenizerBase, edit: Edit, contexts: Sequence[str]
) -> list[tuple[list[int], list[int], bool]]:
    """
    The edit in other surroundings, to train on beside its own prompt.

    Args:
        contexts (`Sequence[str]`): As in [`EditingArguments`].

    Returns:
        For each context that applies: tokens of the text, tokens of the target, and whether it holds the whole prompt.
    """
    prompt, target, span = edit.prompt.rstrip(), edit.target_new.strip(), edit.subject_span()
    subject = prompt[slice(*span)] if span else prompt
    rows = []
    for context in contexts:
        special, separator = True, " "
        if context in CHATS:
            if tokenizer.chat_template is None:
                continue
            turns = [*CHATS[context], {"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            special, separator = False, ""
        elif span is None and "{subject}" in context:
            continue
        else:
            text = context.format(prompt=prompt, subject=subject)
        ids = tokenizer(text, add_special_tokens=special)["input_ids"]
        is_whole = context in CHATS or "{prompt}" in context
        rows.append((ids, continuation(tokenizer, text, target, separator, special), is_whole))
    return rows


def spellings(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, ...]]:
    """Tokens of a text at the beginning, and behind other text."""
    return [tuple(tokenizer(form, add_special_tokens=False)["input_ids"]) for form in (text, " " + text)]


def leading(ids: list[int], plain: list[int]) -> int:
    """How many tokens, such as <bos>, a tokenizer has put before a text."""
    return next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)


def columns(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], start: int, end: int) -> tuple[int, int]:
    """First and last token of the characters from `start` to `end`."""
    if tokenizer.is_fast:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
        return inside[0], inside[-1]
    ends = [len(tokenizer(text[:cut], add_special_tokens=False)["input_ids"]) for cut in (start, end)]
    return min(ends[0], len(ids) - 1), max(min(ends[1], len(ids)) - 1, 0)


class Calibration:
    """
    Sets the threshold of every anchor against prompts that no edit is about.

    An anchor of which these prompts hold the share s in a row is found from (1 + s) / 2 on, and never below
    `LOWEST_THRESHOLD`. A subject that stands in them as it is, such as "The Who" in lower case, is no anchor at all:
    then only the edit's whole prompt is. An anchor's threshold depends on nothing but the anchor, and never changes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        sequences = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in reference_prompts()]
        self.ids, _ = pad_right(sequences, -1, torch.device("cpu"))

    def anchors(self, tokenized: TokenizedEdit, edit: int, expert: int) -> list[Anchor]:
        found = Anchors()
        candidates = [Anchor(tokens, i, 0, start, 0.0) for i, (tokens, _, start) in enumerate(tokenized.spans)]
        found.add(candidates)
        nearest = [0.0] * len(candidates)
        for row in found.find(self.ids):
            for match in row:
                nearest[match.edit] = max(nearest[match.edit], match.score)
        anchors = []
        for (tokens, is_prompt, start), score in zip(tokenized.spans, nearest, strict=True):
            threshold = 1.0 if is_prompt else max(LOWEST_THRESHOLD, (1 + score) / 2)
            if is_prompt or score < 1:
                anchors.append(Anchor(tokens, edit, expert, start, threshold, is_prompt))
        return anchors
