"""An edit ends: it acts in the answer to the question that asked for it, and in nothing behind that."""

from __future__ import annotations

from dataclasses import dataclass, field

from .vocabulary import COLON, HEADER, SPECIAL, STOP, WORD


# Words in front of a colon that are taken for a label, such as "Answer:" or "The answer is:", rather than for an answer.
LABEL = 3


@dataclass
class Answer:
    """
    How far the answer to one question has come, read token by token.

    Between question and answer there may be punctuation, the marks and the header of a turn, and a label such as "Answer:".
    The answer is over when the target has been said, or else when its first sentence ends; a stop that is part of the target
    ends nothing.

    Args:
        targets (`tuple` of `tuple[int, ...]`): The target, in each of its spellings; none where it is not known.
        begun (`bool`): Whether anything of it has been said.
        over (`bool`): Whether it has ended.
        words (`int`): Tokens with letters or digits since it began.
        in_header (`bool`): Whether the tokens that come are those of the header of a turn.
        matched (`list` of `tuple[int, int]`): Targets, and how many of their tokens the last ones are.
        said (`bool`): Whether the target has been said.
    """

    targets: tuple[tuple[int, ...], ...]
    begun: bool = False
    over: bool = False
    words: int = 0
    in_header: bool = False
    matched: list[tuple[int, int]] = field(default_factory=list)
    said: bool = False

    def read(self, token: int, kind: int) -> bool:
        """Whether the edit still acts on the next token of the text, whose kind is that of its [`Vocabulary`]."""
        if self.over or self.said:
            self.over = True
            return False
        self.matched = [
            (i, length + 1)
            for i, length in [*self.matched, *((i, 0) for i in range(len(self.targets)))]
            if self.targets[i][length] == token
        ]
        if any(length == len(self.targets[i]) for i, length in self.matched):
            self.said = True  # it acts once more, and says that this was all
        elif self.matched:
            self.begun = True
        elif not self.begun:
            self._lead_in(kind)
        elif kind & COLON and self.words <= LABEL:
            self.begun, self.words = False, 0
        elif kind & (STOP | SPECIAL):
            self.over = True
        else:
            self.words += bool(kind & WORD)
        return not self.over

    def _lead_in(self, kind: int) -> None:
        if kind & (STOP | SPECIAL):
            self.in_header = bool(kind & HEADER)
        elif kind & WORD and not self.in_header:
            self.begun, self.words = True, 1
