"""By which letters names are looked up: exactly, and with one letter wrong. It is derived from names, and never saved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Name(NamedTuple):
    """
    By what an edit is found.

    Args:
        edit (`int`): The edit.
        text (`str`): As [`written`] gives it.
        is_prompt (`bool`): It is the edit's whole prompt, and neither its subject nor an alias.
        is_cased (`bool`): It is found only where it has its own capitals, since in others it is everyday language.
        is_near (`bool`): It is also found with one letter missing, added, wrong, or swapped with the next.
    """

    edit: int
    text: str
    is_prompt: bool = False
    is_cased: bool = False
    is_near: bool = False

    @property
    def key(self) -> str:
        """Its letters."""
        return self.text.replace(" ", "").casefold()


class NameIndex:
    """
    It only grows, so that copies of a store share one: each looks at the first rows, as many as it has, and leaves out those
    that it has removed. A name is looked up by its letters, in a dictionary: text is cut into words anyhow, a lookup of a few
    words in a row costs the same with ten names and with a hundred thousand, and a name more is an entry more, where an
    automaton would be built anew. With one letter wrong, the first half of a name is still right, or what follows the letter
    behind it; either is looked up with the length of the name.
    """

    def __init__(self, names: Sequence[Name] = ()):
        self.rows: list[Name] = []
        self.exact: dict[str, tuple[int, ...]] = {}
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.heads: dict[tuple[int, str], tuple[int, ...]] = {}
        self.tails: dict[tuple[int, str], tuple[int, ...]] = {}
        self.of_edit: dict[int, tuple[int, ...]] = {}
        self.lengths: set[int] = set()
        self.prompt_lengths: set[int] = set()
        self.longest = 0
        self.extend(names)

    def __deepcopy__(self, memo: object) -> None:
        return None  # a copy of the store makes its own when it needs one

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    def extend(self, names: Sequence[Name]) -> None:
        for name in names:
            row, key = len(self.rows), name.key
            self.rows.append(name)
            _append(self.of_edit, name.edit, row)
            if name.is_prompt:
                self.prompt_lengths.add(len(key))
                _append(self.prompts, key, row)
                continue
            self.lengths.add(len(key))
            self.longest = max(self.longest, len(key))
            _append(self.exact, key, row)
            if name.is_near:
                half = len(key) // 2
                _append(self.heads, (len(key), key[:half]), row)
                _append(self.tails, (len(key), key[half + 1 :]), row)

    def perhaps(self, key: str) -> Iterator[int]:
        """Rows of all names that letters may be with one of them wrong, and of others."""
        seen: set[int] = set()
        for length in range(len(key) - 1, len(key) + 2):
            half = length // 2
            for rows in (
                self.heads.get((length, key[:half])),
                self.tails.get((length, key[len(key) - (length - half - 1) :])),
            ):
                for row in rows or ():
                    if row not in seen:
                        seen.add(row)
                        yield row


def _append(rows: dict[Any, tuple[int, ...]], key: object, row: int) -> None:
    rows[key] = (*rows.get(key, ()), row)  # those who are reading one go on with the old one
