"""
A text as names are compared with it: letters, whatever the tokenizer made of them.

Axes: `c` letters of the text, `w` words.
"""

from __future__ import annotations

import codecs
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .letters import BEHIND_A_LETTER, letter


if TYPE_CHECKING:
    from .anchors import Match

# Of what stands between two words as much is kept.
GAP = 4


@dataclass
class Spelled:
    """
    The letters of a text so far, each with the columns of its tokens. It grows token by token: what it is up to a column
    depends on the tokens up to there alone.

    Args:
        key (`str`): All letters in a row, without what stands between words.
        capitals (`list[bool]`), first (`list[int]`), last (`list[int]`): Of each letter whether it is a capital, and in which
            columns its character begins and ends.
        starts (`list[int]`), gaps (`list[str]`): Where words begin, as places in `key`, and what stands before each.
        ends (`list[int]`): Places behind which a word, or a token, ends.
        walls (`list[int]`): Places at which a token of the tokenizer's own stands, over which no name goes.
        found (`list` of [`Match`]): Names in it, as far as it was searched, up to the place `searched`.
        by (`str`): By whom it was searched.
    """

    key: str = ""
    capitals: list[bool] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    last: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    walls: list[int] = field(default_factory=list)
    found: list[Match] = field(default_factory=list)
    searched: int = 0
    by: str = ""
    columns: int = 0  # that were read
    gap: str = "\n"  # what has come since the last letter
    is_alone: bool = False  # whether the last letter is a word of its own
    pending: tuple[bytes, int] = (b"", 0)  # of a character that is not complete, and the column in which it begins

    def copy(self) -> Spelled:
        copied = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, list):
                setattr(copied, name, copy(value))
        return copied

    # ---------------------------------------------------------------------------------------------------------- reading

    def read(self, spelling: bytes | None) -> None:
        """Go on by a token, given as its bytes, or as nothing if it is one of the tokenizer's own."""
        column, self.columns = self.columns, self.columns + 1
        if spelling is None:
            self.pending = (b"", 0)
            self._part("\n")
            self.walls.append(len(self.key))
            return
        length = len(self.key)
        bytes_before, begin = self.pending
        if bytes_before or not _is_whole(spelling):
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            decoder.setstate((bytes_before, 0))
            for byte in spelling:
                begin = begin if bytes_before else column
                chars = decoder.decode(bytes([byte]))
                for char in chars:
                    self.add(char, begin, column)
                bytes_before = decoder.getstate()[0]
                begin = column if chars else begin
            self.pending = (bytes_before, begin)
        else:
            for char in spelling.decode():
                self.add(char, column, column)
        if len(self.key) > length:
            self._end()

    def add(self, char: str, first: int, last: int) -> None:
        """Go on by a character that stands in these columns."""
        key, parts, is_upper, is_alone, joins = letter(char)
        if parts or (key and key in BEHIND_A_LETTER and (self.gap or not self.key)):
            self._part(char)
        elif key:
            begins = bool(self.gap) or is_alone or (self.is_alone and not joins)
            if begins:
                self._end()
                self.starts.append(len(self.key))
                self.gaps.append(self.gap)
            self.key += key
            self.capitals += [is_upper] * len(key)
            self.first += [first] * len(key)
            self.last += [last] * len(key)
            self.gap, self.is_alone = "", is_alone or (joins and self.is_alone)

    def _part(self, char: str) -> None:
        self._end()
        self.gap = (self.gap + char)[-GAP:]

    def _end(self) -> None:
        if self.key and (not self.ends or self.ends[-1] != len(self.key)):
            self.ends.append(len(self.key))

    # ---------------------------------------------------------------------------------------------------------- looking

    def length(self, column: int) -> int:
        """How many letters there are up to a column."""
        return bisect_right(self.last, column)

    def word(self, place: int, stop: int) -> int:
        """Where the word ends that a letter before `place` belongs to, in a text that ends at `stop`."""
        following = bisect_left(self.starts, place)
        return min(self.starts[following], stop) if following < len(self.starts) else stop

    def words(self, begin: int, end: int) -> list[str]:
        """The words from one place to another, which begins one."""
        inner = self.starts[bisect_right(self.starts, begin) : bisect_left(self.starts, end)]
        bounds = [begin, *inner, end]
        return [self.key[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]

    def gap_before(self, start: int) -> str:
        """What stands before a word."""
        return self.gaps[bisect_left(self.starts, start)]


def _is_whole(spelling: bytes) -> bool:
    if spelling.isascii():
        return True
    try:
        spelling.decode()
    except UnicodeDecodeError:
        return False
    return True


def spelled(text: str) -> Spelled:
    """A text that is no tokens; every letter stands in the column of its character."""
    found = Spelled()
    for column, char in enumerate(text):
        found.add(char, column, column)
    found._end()
    return found


def written(text: str) -> str:
    """A name as it is stored: its letters with their case, words parted by a space. Empty if it has none."""
    found = spelled(text)
    words: Sequence[str] = found.words(0, len(found.key)) if found.key else []
    place, cased = 0, []
    for word in words:
        capitals = found.capitals[place : place + len(word)]
        cased.append("".join(_upper(char) if up else char for char, up in zip(word, capitals, strict=True)))
        place += len(word)
    return " ".join(cased)


def _upper(char: str) -> str:
    upper = char.upper()
    return upper if letter(upper[0]).key == char and len(upper) == 1 else char
