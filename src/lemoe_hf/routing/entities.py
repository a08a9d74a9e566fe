"""What a prompt is about, by its tokens: a mixture's gate reads it beside every hidden state (MEMoE's anchor)."""

from __future__ import annotations

from collections.abc import Sequence

from .anchors import Anchors, Match
from .scope import names
from .text import Decision, Text
from .vocabulary import CAPITAL, CONTINUES, Vocabulary


def entity_of(text: Text, column: int, subjects: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """
    Tokens of what a prompt that ends at a column is about: of these subjects, given by their first and last columns; without
    any, of the capitalised words that its last turn says behind its first word; without those, all that it says.
    """
    columns = sorted({each for first, last in subjects for each in range(first, last + 1)})
    if not columns:
        said = [each for each in range(text.turn(column), column + 1) if text.content[each]]
        columns = capitalised(text, said) or said or list(range(column + 1))
    return tuple(text.ids[each] for each in columns if text.ids[each] >= 0)


def capitalised(text: Text, columns: Sequence[int]) -> list[int]:
    """The columns that are of a capitalised word, to its last token."""
    found: list[int] = []
    for column in columns:
        goes_on = bool(found) and found[-1] == column - 1 and bool(text.kinds[column] & CONTINUES)
        if text.kinds[column] & CAPITAL or goes_on:
            found.append(column)
    return found


def of_decision(text: Text, decision: Decision) -> tuple[int, ...]:
    """What a question is about: the subject by which its edit was found, or that in the edit's own prompt."""
    if decision.name is not None:
        return entity_of(text, decision.column, [decision.name])
    return entity_of(text, decision.column, last_subject(text.found, decision.edit, decision.column))


def last_subject(found: Sequence[Match], edit: int | None, column: int) -> list[tuple[int, int]]:
    """Where a text has named the subject of an edit last, if it has."""
    spans = [
        (each.first, each.last) for each in found if each.edit == edit and not each.is_prompt and each.last <= column
    ]
    return [max(spans, key=lambda span: (span[1], -span[0]))] if spans else []


def of_prompt(
    prompt: Sequence[int], found: Sequence[Match], anchors: Anchors, vocabulary: Vocabulary
) -> tuple[int, ...]:
    """What a whole prompt is about, given by its tokens: all edited subjects that it names, if there are any."""
    text = Text()
    text.read(prompt, range(len(prompt)), vocabulary)
    column = len(prompt) - 1
    named = names(anchors, found, text.ids, vocabulary, column)
    return entity_of(text, column, [(match.first, match.last) for match in named])
