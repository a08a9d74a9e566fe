"""Which of the anchors that a text holds count at a column: what stands behind it has no say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from .anchors import Anchors, Match
from .vocabulary import CONTINUES, Vocabulary


def own_prompt(found: Sequence[Match], column: int, said_until: int) -> Match | None:
    """
    The edit whose own prompt ends at a column, or before it if nothing has been said since: of several the longest prompt's,
    then the latest.
    """
    prompts = [match for match in found if match.is_prompt and said_until <= match.last <= column]
    return max(prompts, key=lambda match: (match.last - match.first, match.edit), default=None)


def names(
    anchors: Anchors, found: Sequence[Match], ids: Sequence[int], vocabulary: Vocabulary, column: int
) -> list[Match]:
    """
    The edited subjects that a text has named up to a column, in order, each with the `rivals` of its best edit.

    A longer name hides what lies within it. Of edits of one subject those come first whose anchor is found more surely, then
    those whose prompt shares more tokens with this text, then the later ones.
    """
    seen = [
        replace(match, last=min(match.last, column))
        for match in found
        if not match.is_prompt and match.reached <= column
    ]
    seen = [match for match in seen if match.name or not begins_longer_name(anchors, match, ids, vocabulary, column)]
    spans: dict[tuple[int, int], list[Match]] = {}
    for match in seen:
        spans.setdefault((match.first, match.last), []).append(match)
    tokens = set(ids[: column + 1]) if any(len(rivals) > 1 for rivals in spans.values()) else set()
    chosen: list[Match] = []
    for (first, last), rivals in sorted(spans.items(), key=lambda item: item[0][0] - item[0][1]):
        if not any(other.first <= first and last <= other.last for other in chosen):
            if len(rivals) > 1:
                rivals.sort(key=lambda match: rank(anchors, match, tokens), reverse=True)
            best = rivals[0]
            chosen.append(replace(best, rivals=tuple(match for match in rivals[1:] if match.edit != best.edit)))
    return sorted(chosen, key=lambda match: (match.last, match.first))


def begins_longer_name(
    anchors: Anchors, match: Match, ids: Sequence[int], vocabulary: Vocabulary, column: int
) -> bool:
    """
    Whether a subject with a capitalised word behind it, or a part of a word, is the beginning of another name: neither Miami
    Vice is Miami, nor Bernardo Bern. Not if it goes on so in the edit's own prompt.
    """
    if match.last >= column or not vocabulary.kind(ids[match.last + 1]) & CONTINUES:
        return False
    name = list(ids[match.first : match.last + 1])
    behind = [
        prompt[i + len(name)]
        for prompt in anchors.prompts(match.edit)
        for i in range(len(prompt) - len(name))
        if prompt[i : i + len(name)] == name
    ]
    return not any(vocabulary.kind(token) & CONTINUES for token in behind)


def rank(anchors: Anchors, match: Match, tokens: set[int]) -> tuple[float, int, int]:
    """By what one of several edits of a subject comes before the others; `tokens` are those of the text."""
    prompt = set().union(*anchors.prompts(match.edit))
    return match.score, len(prompt & tokens), match.edit
