"""One text as far as it was read: what its tokens are, and where its sentences and turns begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .answer import LABEL
from .vocabulary import COLON, HEADER, MARK, STOP, WORD, Vocabulary


@dataclass
class Tokens:
    """
    The tokens of one text so far. Columns are positions in the text; there is no padding.

    Args:
        ends (`set[int]`): Columns at which a prompt is known to end.
    """

    ends: set[int] = field(default_factory=set)
    ids: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # the column of the batch that each token stood in
    kinds: list[int] = field(default_factory=list)  # what each is, as the vocabulary tells
    begins: list[int] = field(default_factory=list)  # the first column of the sentence that each token is of
    content: list[bool] = field(default_factory=list)  # whether it says anything
    headers: list[bool] = field(default_factory=list)  # whether it is within the header of a turn
    replies: list[int] = field(default_factory=list)  # columns behind which an answer begins
    marks: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, tokens: Sequence[int], places: Sequence[int], vocabulary: Vocabulary) -> None:
        """Append tokens, which stand in these columns of the batch."""
        table, reply = vocabulary.table, vocabulary.reply_tokens
        known = len(table)
        begin, header = 0, False
        if self.ids:
            begin = len(self.ids) if self.kinds[-1] & STOP else self.begins[-1]
            header = self.headers[-1]
        for token, place in zip(tokens, places, strict=True):
            kind = table[token] if 0 <= token < known else 0
            column = len(self.ids)
            self.ids.append(token)
            self.places.append(place)
            self.kinds.append(kind)
            self.begins.append(begin)
            if kind & STOP:
                begin, header = column + 1, bool(kind & HEADER)
            self.headers.append(header)
            self.content.append(not known or (bool(kind & WORD) and not header))
            if kind & COLON:
                self._unsay_label(column)
            if kind & MARK:
                self.marks.append(column)
            if reply and token == reply[-1] and tuple(self.ids[-len(reply) :]) == reply:
                self.replies.append(column)

    def _unsay_label(self, column: int) -> None:
        """A word or two in front of a colon, behind other text, are a label and say nothing: "Answer:"."""
        line = range(self.begins[column], column + 1)
        if self.begins[column] > 0 and sum(self.content[column] for column in line) <= LABEL:
            for column in line:
                self.content[column] = False

    def cut(self, length: int) -> None:
        """Forget all tokens from the column `length` on."""
        had_colon = any(kind & COLON for kind in self.kinds[length:])
        for name in ("ids", "places", "kinds", "begins", "content", "headers"):
            del getattr(self, name)[length:]
        if had_colon and length:
            line = range(self.begins[-1], length)
            for column in line:  # what was a label says something without its colon
                self.content[column] = bool(self.kinds[column] & WORD) and not self.headers[column]
            for column in line:
                if self.kinds[column] & COLON:
                    self._unsay_label(column)
        self.replies = [column for column in self.replies if column < length]
        self.marks = [column for column in self.marks if column < length]
        self.ends = {column for column in self.ends if column < length}

    def said_until(self, column: int) -> int:
        """The last column up to this one, behind the last place of an answer, that says something; else this one."""
        first = max((each for each in (*self.replies, *self.ends) if each < column), default=-1) + 1
        return next((each for each in range(column, first - 1, -1) if self.content[each]), column)

    def turn(self, column: int) -> int:
        """Where the turn begins that says something last: behind its header, or behind the last place of an answer."""
        first = max((each for each in (*self.replies, *self.ends) if each < column), default=-1) + 1
        until = self.said_until(column)
        return max((each for each in range(first, until + 1) if self.kinds[each] & HEADER), default=first)

    def sentences(self, first: int, last: int) -> int:
        """How many sentences that say something end within columns `first` to `last`."""
        count, has_content = 0, False
        for column in range(first, last + 1):
            has_content = has_content or self.content[column]
            if self.kinds[column] & STOP and has_content:
                count, has_content = count + 1, False
        return count

    def asked(self, first: int) -> dict[int, str]:
        """Columns from `first` on at which a question is known to end, and how that is known."""
        known = {column: "end" for column in (*self.ends, *self.replies) if first <= column < len(self.ids)}
        return known | {column: "mark" for column in self.marks if column >= first}

    def _has_said(self, targets: tuple[tuple[int, ...], ...], first: int, last: int) -> bool:
        """Whether any of these tokens stand in a row within columns `first` to `last`."""
        return any(
            tuple(self.ids[column : column + len(target)]) == target
            for target in targets
            for column in range(first, last + 2 - len(target))
        )
