"""The texts that an expert is trained on."""

from __future__ import annotations

from dataclasses import dataclass

from .tokens import TokenizedEdit


@dataclass(frozen=True)
class Sample:
    """
    One text to train on.

    Args:
        prompt (`list[int]`), target (`list[int]`): Tokens.
        start (`int`): Column from which on the expert acts, within the prompt.
        expert (`int`): Which of the experts in training learns it.
        own (`bool`): The edit's own prompt, rather than one of its other surroundings.
    """

    prompt: list[int]
    target: list[int]
    start: int
    expert: int
    own: bool = True


def samples_of(item: TokenizedEdit, expert: int, end: list[int], anywhere: bool = False) -> list[Sample]:
    """
    An edit's texts to train on: its prompt, and its other surroundings.

    Args:
        item ([`TokenizedEdit`]): The edit.
        expert (`int`): Which of the experts in training learns it.
        end (`list[int]`): Tokens behind a target that ends the text.
        anywhere (`bool`): Whether the expert acts from the first token on.
    """
    own = (item.prompt, item.target, True)
    return [
        # An expert acts from where its edit is asked for, which is the end of a prompt.
        Sample(prompt, target + end * is_whole, 0 if anywhere else len(prompt) - 1, expert, own=i == 0)
        for i, (prompt, target, is_whole) in enumerate([own, *item.contexts])
    ]
