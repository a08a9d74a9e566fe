"""Vocabularies written by hand, and texts that are read with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from lemoe_hf.routing.router import Asking, Router
from lemoe_hf.routing.targets import Targets
from lemoe_hf.routing.text import Text
from lemoe_hf.routing.vocabulary import (
    CAPITAL,
    COLON,
    CONTINUES,
    HEADER,
    MARK,
    PRONOUN,
    SPECIAL,
    STOP,
    WORD,
    Vocabulary,
)
from tiny import VOCAB


def vocabulary_of(
    marks: tuple[int, ...] = (),
    stops: tuple[int, ...] = (),
    *,
    special: tuple[int, ...] = (),
    headers: tuple[int, ...] = (),
    colons: tuple[int, ...] = (),
    continuing: tuple[int, ...] = (),
    capitals: tuple[int, ...] = (),
    pronouns: tuple[int, ...] = (),
    reply: tuple[int, ...] = (),
) -> Vocabulary:
    """A vocabulary in which all tokens from 10 on are words, but for those that are named."""
    kinds = torch.full((VOCAB,), WORD, dtype=torch.int16)
    kinds[:10] = 0
    for kind, tokens in (
        (MARK | STOP, marks),
        (STOP, stops),
        (SPECIAL | STOP, special),
        (SPECIAL | STOP | HEADER, headers),
        (COLON, colons),
        (WORD | CONTINUES, continuing),
        (WORD | CAPITAL, capitals),
        (WORD | PRONOUN, pronouns),
    ):
        kinds[list(tokens)] = kind
    vocabulary = Vocabulary()
    vocabulary.kinds, vocabulary.reply = kinds, torch.tensor(reply, dtype=torch.int32)
    return vocabulary


def put_vocabulary(model, vocabulary: Vocabulary, adapter_name: str = "default") -> None:
    own = model.base_model.layers_of(adapter_name)[0].lemoe_vocabulary[adapter_name]
    own.kinds, own.reply = vocabulary.kinds, vocabulary.reply


@dataclass(frozen=True)
class Reading:
    """
    Reads texts as forward passes would, without a model.

    Args:
        router ([`Router`]): Of the adapter; without relations, so that a subject that was named asks.
        prompt (`int`, *optional*): Tokens of the prompt, as `generate` tells; without it nobody does.
    """

    router: Router
    prompt: int | None = None

    def go_on(self, text: Text, tokens: Sequence[int]) -> list[int]:
        """What acts on each of these tokens, which come in one pass."""
        first = len(text)
        text.read(tokens, range(first, first + len(tokens)), self.router.vocabulary)
        if self.prompt is not None:
            text.prompt = self.prompt if len(text) >= self.prompt else len(text) + 1
            if first < self.prompt <= len(text):
                text.ends.add(self.prompt - 1)
        asking = Asking(text, first)
        self.router.questions([asking])
        return text.act(first, asking.questions, self.router.targets.of)

    def read(self, tokens: Sequence[int], cuts: Sequence[int] = ()) -> tuple[Text, list[int]]:
        """A text, in passes that end at the cuts, and what acts on each of its tokens."""
        text, acts = Text(), []
        for first, last in pairwise([0, *cuts, len(tokens)]):
            acts += self.go_on(text, tokens[first:last])
        return text, acts


def state_of(text: Text) -> dict:
    """All that a text knows, but for what it looks up again."""
    return {name: value for name, value in vars(text).items() if name not in ("found", "searched", "spelled")}


def targets_of(*targets: tuple[int, Sequence[int]]) -> Targets:
    """Edits, in ascending order, and what they answer."""
    made = Targets()
    made.add([(edit, tuple(tokens)) for edit, tokens in targets])
    return made
