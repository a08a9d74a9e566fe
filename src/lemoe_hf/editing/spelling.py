"""Tell an adapter how tokens are spelled, and an edit by which names it is found."""

from __future__ import annotations

import re
import warnings

import numpy as np
import torch
from rapidfuzz.distance import OSA
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from ..data.edit import Edit
from ..data.reference import reference_prompts
from ..routing.name_index import Name, NameIndex
from ..routing.naming import SHORTEST_NEAR
from ..routing.small_words import SMALL
from ..routing.spelled import written
from ..routing.vocabulary import Vocabulary


BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")
LONGEST = 8  # words of everyday language in a row that are kept


def learn_spelling(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell how every token that `vocabulary` knows is spelled, in bytes of UTF-8; one may hold a part of a character."""
    found = spelling_of(tokenizer)[: len(vocabulary.kinds)]
    device = vocabulary.kinds.device
    vocabulary.spelling = torch.from_numpy(np.frombuffer(b"".join(found), dtype=np.uint8).copy()).to(device)
    vocabulary.spelling_lengths = torch.tensor([len(each) for each in found], dtype=torch.int16, device=device)


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> list[bytes]:
    """The bytes that each token stands for, behind other text."""
    tokens = range(len(tokenizer))
    names = tokenizer.convert_ids_to_tokens(list(tokens))
    added = set(tokenizer.added_tokens_decoder)
    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    if is_byte_level(tokenizer):
        return [
            name.encode() if token in added else bytes(byte_of[char] for char in name if char in byte_of)
            for token, name in zip(tokens, names, strict=True)
        ]
    word = tokenizer(" a", add_special_tokens=False)["input_ids"][-1]
    length = len(tokenizer.decode([word]))
    behind = [text[length:] for text in tokenizer.batch_decode([[word, token] for token in tokens])]
    bytes_of = [BYTE.fullmatch(name or "") for name in names]
    return [
        bytes.fromhex(byte[1]) if byte else text.encode(errors="replace")
        for byte, text in zip(bytes_of, behind, strict=True)
    ]


def is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens are written with a character for each byte, as GPT-2 does."""
    if tokenizer.is_fast:
        return "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
    return hasattr(tokenizer, "byte_decoder")


class Naming:
    """
    By which names edits are found.

    A name that stands in prompts that no edit is about, such as "the who", is everyday language, and is found only in its own
    capitals; where these stand there as well, it is no name at all, and only the edit's whole prompt is. One that comes within
    a letter of them is found exactly or not. What a name is depends on nothing but the name.
    """

    def __init__(self) -> None:
        spans: set[str] = set()
        for text in reference_prompts():
            words = written(text).split(" ")
            for first in range(len(words)):
                spans |= {
                    " ".join(words[first:last]) for last in range(first + 1, min(first + LONGEST, len(words)) + 1)
                }
        self._said = NameIndex([Name(0, span, is_near=True) for span in spans])

    def names(self, edit: Edit, edit_id: int) -> list[Name]:
        """Of an edit: its subject, its aliases, and its prompt."""
        span = edit.subject_span()
        texts = [] if span is None else [edit.prompt[slice(*span)]]
        if texts and not written(texts[0]):
            warnings.warn(
                f"The subject {texts[0]!r} of {edit.prompt!r} has no letters: the edit is found by its whole prompt alone.",
                stacklevel=4,
            )
        found = [self.name(text, edit_id) for text in (*texts, *(edit.aliases or ()))]
        prompt = Name(edit_id, written(edit.prompt), is_prompt=True)
        return [name for name in found if name is not None] + ([prompt] if prompt.text else [])

    def name(self, text: str, edit_id: int) -> Name | None:
        """A name as it is found; `None` if nothing is left of it, or if it is everyday language."""
        name = Name(edit_id, written(text))
        if not name.text:
            return None
        said = [self._said.rows[row].text.replace(" ", "") for row in self._said.exact.get(name.key, ())]
        if name.text.replace(" ", "") in said:
            return None
        is_cased = bool(said) or (name.key in SMALL and name.text != name.key)
        near = (self._said.rows[row].key for row in self._said.perhaps(name.key))
        is_near = len(name.key) >= SHORTEST_NEAR and not any(OSA.distance(name.key, key) <= 1 for key in near)
        return name._replace(is_cased=is_cased, is_near=is_near and not is_cased)
