"""Vocabularies written by hand, and texts that are read with them."""

from __future__ import annotations

import torch

from lemoe_hf.routing.text import Text
from lemoe_hf.routing.vocabulary import COLON, CONTINUES, HEADER, MARK, SPECIAL, STOP, WORD, Vocabulary
from tiny import VOCAB


def vocabulary_of(
    marks: tuple[int, ...] = (),
    stops: tuple[int, ...] = (),
    *,
    special: tuple[int, ...] = (),
    headers: tuple[int, ...] = (),
    colons: tuple[int, ...] = (),
    continuing: tuple[int, ...] = (),
    reply: tuple[int, ...] = (),
) -> Vocabulary:
    """A vocabulary in which all tokens from 10 on are words, but for those that are named."""
    kinds = torch.full((VOCAB,), WORD, dtype=torch.uint8)
    kinds[:10] = 0
    for kind, tokens in (
        (MARK | STOP, marks),
        (STOP, stops),
        (SPECIAL | STOP, special),
        (SPECIAL | STOP | HEADER, headers),
        (COLON, colons),
        (WORD | CONTINUES, continuing),
    ):
        kinds[list(tokens)] = kind
    vocabulary = Vocabulary()
    vocabulary.kinds, vocabulary.reply = kinds, torch.tensor(reply, dtype=torch.int32)
    return vocabulary


def put_vocabulary(model, vocabulary: Vocabulary, adapter_name: str = "default") -> None:
    own = model.base_model.lemoe_layers(adapter_name)[0].lemoe_vocabulary[adapter_name]
    own.kinds, own.reply = vocabulary.kinds, vocabulary.reply
