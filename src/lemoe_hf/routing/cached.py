"""Texts that are kept beside a KV cache, and go where its rows go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..structure import CACHE_NAMES
from .compiled import number_of
from .text import Text


def cache_in(holder: Any) -> Any:
    """The cache among the arguments of a forward pass, or in its output."""
    if not isinstance(holder, Mapping):
        return next((cache for name in CACHE_NAMES if (cache := getattr(holder, name, None)) is not None), None)
    # An output answers to names that it does not have any more, and complains.
    return next((holder[name] for name in CACHE_NAMES if name in holder and holder[name] is not None), None)


@dataclass(eq=False)
class CachedTexts:
    """
    The texts in the rows of a KV cache: of each adapter a list.

    Beams and candidates move the rows of a cache: its methods that do so are replaced, on this one object, by those here,
    which do the same and move the texts along.

    Args:
        columns (`int`): Columns that have been seen, padding among them.
        texts (`dict[str, list[Text]]`): Of each adapter.
        cache (*optional*): The cache.
        number (`torch.Tensor`, *optional*): By which operators in a compiled graph know this object.
        seen (`dict[str, int]`): Up to which column each adapter has seen them.
    """

    columns: int = 0
    texts: dict[str, list[Text]] = field(default_factory=dict)
    cache: Any = None
    number: torch.Tensor | None = None
    seen: dict[str, int] = field(default_factory=dict)

    MOVED = ("reorder_cache", "batch_repeat_interleave", "batch_select_indices")

    def attach(self, cache: Any) -> None:
        """Keep the texts with a cache."""
        if getattr(cache, "lemoe_texts", None) is self:
            return
        self.cache, self.number = cache, torch.tensor(number_of(self))
        cache.lemoe_texts = self
        for name in self.MOVED:
            if hasattr(type(cache), name):
                setattr(cache, name, getattr(self, name))

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"number": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self.cache is not None:
            self.number = torch.tensor(number_of(self))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        type(self.cache).reorder_cache(self.cache, beam_idx)
        self._take(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        type(self.cache).batch_repeat_interleave(self.cache, repeats)
        self.repeat(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        type(self.cache).batch_select_indices(self.cache, indices)
        rows = indices.nonzero().flatten() if indices.dtype == torch.bool else indices
        self._take(rows.tolist())

    def repeat(self, times: int) -> None:
        """Every row `times` times."""
        for name, texts in self.texts.items():
            self.texts[name] = [text.copy() for text in texts for _ in range(times)]

    def _take(self, rows: list[int]) -> None:
        for name, texts in self.texts.items():
            self.texts[name] = [texts[row].copy() for row in rows]

    def cut(self, columns: int) -> None:
        """Go back to the first `columns` columns, as the cache has been cropped to."""
        for texts in self.texts.values():
            for text in texts:
                length = len(text)
                while length and text.places[length - 1] >= columns:
                    length -= 1
                if length < len(text):
                    text.cut(length)
        self.columns, self.seen = columns, {name: min(seen, columns) for name, seen in self.seen.items()}

    def length_in(self, cache: Any) -> int:
        """How many columns a cache holds; those that were seen, where it keeps a state and no count."""
        try:
            return int(cache.get_seq_length())
        except (AttributeError, ValueError):
            return self.columns
