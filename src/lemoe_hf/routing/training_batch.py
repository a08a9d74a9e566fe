"""What a training loop edits: the prompts of its batches, told by their labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .anchors import Anchor, Anchors
from .layout import Piece


@dataclass(frozen=True)
class Lesson:
    """
    A prompt in a training batch, with its answer.

    Args:
        row (`int`), places (`list[int]`): The columns on which the open expert acts: from the prompt's last token, which
            predicts the first label, to the last but one label.
        read (`tuple[int, ...]`): Its tokens.
        target (`tuple[int, ...]`): The labels.
        bos (`int`, *optional*): The token that a tokenizer may put before a text; elsewhere in a text there is none.
    """

    row: int
    places: list[int]
    read: tuple[int, ...]
    target: tuple[int, ...]
    bos: int | None = None

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens by which it is found again, wherever it stands."""
        return self.read[1:] if self.read[:1] == (self.bos,) else self.read


def lessons_of(pieces: Sequence[Piece], bos: int | None) -> list[Lesson]:
    """
    The prompts of a batch: in a text each run of tokens that is followed by labels is one, whether texts stand in rows of
    their own or are packed, and however many turns they have.

    Args:
        pieces (`Sequence` of [`Piece`]): The texts. Without labels there is no telling prompt from answer, and the whole text
            is trained.
        bos (`int`, *optional*): As in [`Lesson`].
    """
    lessons = []
    for piece in pieces:
        labels = piece.labels
        if labels is None:
            lessons.append(Lesson(piece.row, piece.places, tuple(piece.tokens), (), bos))
            continue
        first = 0
        while first < len(labels):
            begin = next((i for i in range(first, len(labels)) if labels[i] != -100), len(labels))
            end = next((i for i in range(begin, len(labels)) if labels[i] == -100), len(labels))
            if first < begin < end:
                places = piece.places[begin - 1 : end - 1]
                lessons.append(
                    Lesson(piece.row, places, tuple(piece.tokens[first:begin]), tuple(labels[begin:end]), bos)
                )
            first = end
    if pieces and not lessons:
        warnings.warn(
            "This batch has labels and no prompt in front of them (no token has the label -100): nothing of it will be found "
            "again, and no edit is made. Give the prompt's tokens the label -100, as EditCollator does; in TRL pass `prompt` "
            "and `completion` columns, or `assistant_only_loss=True` for conversations.",
            stacklevel=2,
        )
    return lessons


def new_edits(
    anchors: Anchors, lessons: Sequence[Lesson], expert: int, first: int
) -> tuple[list[Lesson], list[Anchor], list[dict[str, Any]]]:
    """
    The prompts that are not in the scope of the open expert yet, with the anchors to store and the ledger's entries of them.

    Args:
        anchors ([`Anchors`]): Those of the adapter.
        lessons (`Sequence` of [`Lesson`]): What the batch teaches.
        expert (`int`): The open expert.
        first (`int`): The identifier of the next edit.

    A prompt that a committed expert answers is edited again: its anchor is stored once more, and the later one wins.
    """
    in_training = anchors.edit[anchors.expert >= expert].unique().tolist()
    stored = {tuple(prompt) for edit in in_training for prompt in anchors.prompts(edit)}
    new = {lesson.prompt: lesson for lesson in lessons if lesson.prompt and lesson.prompt not in stored}
    ids = range(first, first + len(new))
    made = [
        Anchor(prompt, edit, expert, len(prompt) - 1 if lesson.target else 0, is_prompt=True)
        for edit, (prompt, lesson) in zip(ids, new.items(), strict=True)
    ]
    entries = [
        {"id": edit, "expert": expert, "prompt_ids": prompt, "target_ids": list(lesson.target)}
        for edit, (prompt, lesson) in zip(ids, new.items(), strict=True)
    ]
    return list(new.values()), made, entries
