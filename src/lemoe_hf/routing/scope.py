"""Which of the anchors that a prompt holds put it in scope, and in which order."""

from __future__ import annotations

from dataclasses import replace

import torch

from .anchors import Anchors, Match


def in_scope(
    anchors: Anchors, ids: torch.Tensor, threshold: float | None = None, continuing: torch.Tensor | None = None
) -> list[list[Match]]:
    """
    Choose, for each prompt, the matches that count, in the order in which they take effect.

    A longer match hides what lies within it: a prompt that is an edit's own belongs to that edit, whatever subjects it
    mentions and whatever is edited later. Among matches of the same span the higher score wins, then a whole prompt
    over a subject, then the edit whose prompt shares more tokens with this one, then the later edit. The matches that
    are left follow one another: each acts from its `start` on, until the next one's.

    Args:
        anchors ([`Anchors`]): Of all edits.
        ids (`torch.Tensor` of shape `(b, t)`): As for [`Anchors.find`].
        threshold (`float`, *optional*): As for [`Anchors.find`].
        continuing (`torch.Tensor`, *optional*):
            Tokens with which a name goes on. A subject with one of them behind it is the beginning of a longer name,
            unless it goes on so in the edit's own prompt: neither Miami Vice is Miami, nor Bernardo Bern.
    """
    found = anchors.find(ids, threshold)
    if continuing is not None and any(found):
        found = without_longer_names(anchors, found, ids, continuing)
    in_order = []
    for row, matches in enumerate(found):
        tokens = set(ids[row].tolist()) if len(matches) > 1 else set()
        spans: dict[tuple[int, int], list[Match]] = {}
        for match in matches:
            spans.setdefault((match.first, match.last), []).append(match)
        chosen: list[Match] = []
        for (first, last), rivals in sorted(spans.items(), key=lambda item: item[0][0] - item[0][1]):
            if not any(other.first <= first and last <= other.last for other in chosen):
                if len(rivals) > 1:
                    rivals.sort(key=lambda match: rank(anchors, match, tokens), reverse=True)
                best, others = rivals[0], [match for match in rivals[1:] if match.edit != rivals[0].edit]
                chosen.append(best if best.is_prompt else replace(best, rivals=tuple(others)))
        in_order.append(sorted(chosen, key=lambda match: (match.start, match.last)))
    return in_order


def without_longer_names(
    anchors: Anchors, found: list[list[Match]], ids: torch.Tensor, continuing: torch.Tensor
) -> list[list[Match]]:
    """The matches that are not the beginning of a longer name."""
    goes_on = torch.isin(ids, continuing.to(ids)).tolist()

    def is_beginning(match: Match, row: int) -> bool:
        if match.is_prompt or not any(goes_on[row][match.last + 1 : match.last + 2]):
            return False
        name = ids[row, match.first : match.last + 1].tolist()
        behind = [
            prompt[i + len(name)]
            for prompt in anchors.prompts(match.edit)
            for i in range(len(prompt) - len(name))
            if prompt[i : i + len(name)] == name
        ]
        return not bool(torch.isin(torch.tensor(behind).to(continuing), continuing).any())

    return [[match for match in matches if not is_beginning(match, row)] for row, matches in enumerate(found)]


def rank(anchors: Anchors, match: Match, tokens: set[int]) -> tuple[float, bool, int, int]:
    """By what one of several matches of the same span comes before the others; `tokens` are those of the prompt."""
    if match.is_prompt:
        return match.score, True, 0, match.edit
    prompt = set().union(*anchors.prompts(match.edit))
    return match.score, False, len(prompt & tokens), match.edit
