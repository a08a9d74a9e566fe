"""Anchors written by hand."""

from __future__ import annotations

from lemoe_hf.routing.anchors import Anchor, Anchors


def bank(*anchors: Anchor) -> Anchors:
    found = Anchors()
    found.add(list(anchors))
    return found


def prompt(tokens, edit, expert=None):
    return Anchor(tuple(tokens), edit, edit if expert is None else expert, len(tokens) - 1, is_prompt=True)


def subject(tokens, edit, expert=None, threshold=0.9):
    return Anchor(tuple(tokens), edit, edit if expert is None else expert, len(tokens) - 1, threshold)
