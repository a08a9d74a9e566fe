"""The names of edits, as text: subjects, aliases, and whole prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import torch

from .frozen import Frozen
from .name_index import Name, NameIndex


FLAGS = ("is_prompt", "is_cased", "is_near")


class Names(Frozen):
    """
    Axes: `a` names, `n` their letters.

    Buffers: `letters` (n), code points of all names; `lengths` (a), `edit` (a), and `flags` (a), the sum of what each name is.
    """

    sizes = ("num_names", "num_name_letters")

    letters: torch.Tensor
    lengths: torch.Tensor
    edit: torch.Tensor
    flags: torch.Tensor

    def __init__(self, num_names: int = 0, num_letters: int = 0):
        super().__init__()
        self.register_buffer("letters", torch.zeros(num_letters, dtype=torch.int32))
        self.register_buffer("lengths", torch.zeros(num_names, dtype=torch.int32))
        self.register_buffer("edit", torch.zeros(num_names, dtype=torch.int32))
        self.register_buffer("flags", torch.zeros(num_names, dtype=torch.uint8))
        self._index: NameIndex | None = None
        self._removed: frozenset[int] = frozenset()  # rows of the index that are no names of this store
        self.version = uuid4().hex  # texts that were searched with another one are searched again

    def __len__(self) -> int:
        return self.lengths.shape[0]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._changed(None)
        super()._load_from_state_dict(*args, **kwargs)

    def _changed(self, index: NameIndex | None, removed: frozenset[int] = frozenset()) -> None:
        self._index, self._removed, self.version = index, removed, uuid4().hex

    # ---------------------------------------------------------------------------------------------------------- changing

    def add(self, names: Sequence[Name]) -> None:
        """Append names; those already stored stay as they are."""
        if not names:
            return
        index = self._index
        is_latest = index is not None and len(index.rows) == len(self) + len(self._removed)
        self.append("letters", torch.tensor([ord(char) for name in names for char in name.text], dtype=torch.int32))
        values = {
            "lengths": [len(name.text) for name in names],
            "edit": [name.edit for name in names],
            "flags": [sum(getattr(name, flag) << place for place, flag in enumerate(FLAGS)) for name in names],
        }
        for field, numbers in values.items():
            self.append(field, torch.tensor(numbers, dtype=getattr(self, field).dtype))
        if index is not None and is_latest:
            index.extend(names)
        self._changed(index if is_latest else None, self._removed if is_latest else frozenset())

    def remove(self, edit: int) -> None:
        """Forget the names of one edit."""
        index = self._index
        removed: frozenset[int] = frozenset()
        if index is not None:
            removed = self._removed | frozenset(self._rows(index.of_edit.get(edit, ())))
        keep = self.edit != edit
        self.letters = self.letters[torch.repeat_interleave(keep, self.lengths.long())]
        self.lengths, self.edit, self.flags = self.lengths[keep], self.edit[keep], self.flags[keep]
        if len(removed) > len(self):  # what was removed costs more than to begin anew
            index, removed = None, frozenset()
        self._changed(index, removed)

    # ----------------------------------------------------------------------------------------------------------- looking

    @property
    def index(self) -> NameIndex:
        if self._index is None:
            self._removed = frozenset()
            self._index = NameIndex(list(self))
        return self._index

    def __iter__(self) -> Iterator[Name]:
        """All names, in the order in which they are stored."""
        letters, place = "".join(map(chr, self.letters.tolist())), 0
        for length, edit, flags in zip(self.lengths.tolist(), self.edit.tolist(), self.flags.tolist(), strict=True):
            is_prompt, is_cased, is_near = (bool(flags >> bit & 1) for bit in range(len(FLAGS)))
            yield Name(edit, letters[place : place + length], is_prompt, is_cased, is_near)
            place += length

    def _rows(self, rows: Sequence[int]) -> list[int]:
        """Those rows of the index that are names of this store, and not of one that has grown from it, or that it was."""
        last = len(self) + len(self._removed)
        return [row for row in rows if row < last and row not in self._removed]

    def exactly(self, key: str) -> list[Name]:
        """Subjects and aliases of these letters."""
        index = self.index
        return [index.rows[row] for row in self._rows(index.exact.get(key, ()))]

    def prompts_of_letters(self, key: str) -> list[Name]:
        """Whole prompts of these letters."""
        index = self.index
        return [index.rows[row] for row in self._rows(index.prompts.get(key, ()))]

    def perhaps(self, key: str) -> list[Name]:
        """Subjects and aliases that letters may be with one of them wrong, and others."""
        index = self.index
        return [index.rows[row] for row in self._rows(list(index.perhaps(key)))]

    def of(self, edit: int) -> list[Name]:
        """All names of an edit."""
        index = self.index
        return [index.rows[row] for row in self._rows(index.of_edit.get(edit, ()))]
