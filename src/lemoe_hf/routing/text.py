"""One text, as it grows: where it may ask for an edit, which edit it has asked for, and where that acts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace

from .anchors import Match
from .answer import Answer
from .spelled import Spelled
from .tokens import Tokens
from .vocabulary import MARK


# Scores closer than this, in standard deviations, do not tell which of two wordings of one question is meant.
NEAR = 2.0
ENDLESS = 2**31 - 1
# Sentences that may stand between a question and the place of its answer: "Who was it? Answer briefly."
BETWEEN = 1


@dataclass(frozen=True)
class Option:
    """
    An edit that a question may ask for.

    Args:
        name ([`Match`]): The subject by which it is found.
        edit (`int`), expert (`int`): The edit and its expert.
        key (`int`): The row of its key among the [`Relations`], -1 for an edit that answers whatever is asked.
        threshold (`float`): The lowest score at which it is asked for.
    """

    name: Match
    edit: int
    expert: int
    key: int
    threshold: float


@dataclass
class Question:
    """
    A column of a text at which a question may end.

    Args:
        column (`int`): The column.
        kind (`str`): `"mark"`, `"end"` of a prompt or a turn, or `"guess"` where nobody knows.
        own ([`Match`], *optional*): The edit's own prompt that ends here.
        options (`list` of [`Option`]): Edits of the subjects that were named.
        scores (`list[float]`): How surely it asks for each.
    """

    column: int
    kind: str
    own: Match | None
    options: list[Option]
    scores: list[float] = field(default_factory=list)

    def asked_for(self, excluded: Sequence[tuple[int, int]] = ()) -> Option | None:
        """
        The edit that is asked for. Of the edits of one subject that score nearly alike it is the first, whose wording is most
        alike; of several subjects the one with the highest score, or the last of them.
        """
        best: tuple[float, int, Option] | None = None
        groups: dict[tuple[int, int], list[tuple[float, Option]]] = {}
        for score, option in zip(self.scores, self.options, strict=True):
            span = (option.name.first, option.name.last)
            if score >= option.threshold and span not in excluded:
                groups.setdefault(span, []).append((score, option))
        for span, group in groups.items():
            highest = max(score for score, _ in group)
            option = next(option for score, option in group if score >= highest - NEAR)
            if best is None or (highest, span[1]) > best[:2]:
                best = (highest, span[1], option)
        return None if best is None else best[2]


@dataclass
class Decision:
    """
    What a question was found to ask for: an edit, which acts from `start` on, or nothing.

    Args:
        column (`int`), kind (`str`): Of the question.
        edit (`int`, *optional*), expert (`int`): The edit and its expert; `None` and -1 where it asks for none.
        targets (`tuple` of `tuple[int, ...]`): What the edit answers.
        name (`tuple[int, int]`, *optional*): The columns of the subject by which it was found.
        start (`int`): The first column on which the edit acts.
        entity (`tuple[int, ...]`): Tokens of what the question is about, where a router asks for them.
    """

    column: int
    kind: str
    edit: int | None
    expert: int
    targets: tuple[tuple[int, ...], ...] = ()
    name: tuple[int, int] | None = None
    start: int = 0
    entity: tuple[int, ...] = ()


@dataclass(frozen=True)
class Mixed:
    """
    What acts on a whole text, by the tokens of its prompt: experts, each with its gate, as a router with learned keys chooses
    them; or a mixture, which is one for all texts, with the tokens of what the prompt is about; or, where all edits share
    the experts of several layers, the gates of all of them, with the edit of the `nearest` code.
    """

    experts: list[int]
    gates: list[float]
    prompt: tuple[int, ...]
    entity: tuple[int, ...] = ()
    nearest: int | None = None


@dataclass
class Text(Tokens):
    """
    The tokens of one text so far, and what they have asked for. Columns are positions in the text; there is no padding.

    It holds no tensor and no module: it is kept with a KV cache, or with a request, and copied along with it.

    Args:
        ends (`set[int]`): Columns at which a prompt is known to end.
        prompt (`int`, *optional*):
            Up to which column the text is a prompt, as far as its ends are known. `None` where nobody has told: then one may
            end anywhere.
        answers_all (`bool`):
            Whether edits act behind the end of every prompt, as where labels tell the answers, and not only of the last one.
    """

    prompt: int | None = None
    answers_all: bool = False
    found: list[Match] = field(default_factory=list)
    searched: int = 0  # tokens of which the matches are known
    spelled: Spelled = field(default_factory=Spelled)  # as far as it was searched for names
    decisions: list[Decision] = field(default_factory=list)
    answer: Answer | None = None
    acting: Decision | None = None
    mixed: Mixed | None = None
    acted: int = ENDLESS  # the first column on which an edit has acted

    def cut(self, length: int) -> None:
        """Forget all tokens from the column `length` on, and what they have asked for."""
        super().cut(length)
        self.decisions = [
            replace(decision, start=min(decision.start, length - 1))
            for decision in self.decisions
            if decision.column < length
        ]
        self.found, self.searched, self.spelled = [], 0, Spelled()
        self.acted = self.acted if self.acted < length else ENDLESS
        if self.mixed is not None and length < len(self.mixed.prompt):
            self.mixed = None
        self._close()
        last = self.decisions[-1] if self.decisions else None
        if last is not None and last.edit is not None and not self._is_past(last):
            self._open(last)
            for column in range(last.column + 1, length):
                self._read_answer(column)

    def copy(self) -> Text:
        """The same text, to go on by itself."""
        copied = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, (list, set)):
                setattr(copied, name, copy(value))
        copied.spelled = self.spelled.copy()
        copied.decisions, copied.acting, copied.answer = deepcopy((self.decisions, self.acting, self.answer))
        return copied

    def act(
        self, first: int, questions: Sequence[Question], targets_of: Callable[[int], tuple[tuple[int, ...], ...]]
    ) -> list[int]:
        """
        Which edit acts on each column from `first` on, -1 for none.

        Args:
            questions (`Sequence` of [`Question`]): In those columns, in order, with their scores.
            targets_of (`Callable`): The targets of an edit.
        """
        acts = [-1] * (len(self.ids) - first)
        if self.acting is None and not questions:
            return acts
        asked = {question.column: question for question in questions}
        for column in range(first if self.acting is not None else questions[0].column, len(self.ids)):
            if self.acting is not None:
                self._read_answer(column)
            if column in asked and not self._is_saying(column):
                self._decide(asked[column], targets_of)
            if self.acting is not None and column >= self.acting.start:
                assert self.acting.edit is not None  # what asks for no edit does not act
                begins = column
                if column in asked:  # adapters from before an edit had an end let it act from its subject on
                    begins = max(self.acting.start, first)
                acts[begins - first : column - first + 1] = [self.acting.edit] * (column - begins + 1)
                self.acted = min(self.acted, begins)
        return acts

    def decided(self, column: int) -> Decision:
        """The decision by which an edit acts on a column."""
        return next(
            each
            for each in reversed(self.decisions)
            if each.edit is not None and min(each.start, each.column) <= column
        )

    def _is_saying(self, column: int) -> bool:
        """Whether a question mark is a part of a target that is being said."""
        return self.answer is not None and bool(self.kinds[column] & MARK) and bool(self.answer.matched)

    def _answer_begins(self, column: int, targets: tuple[tuple[int, ...], ...]) -> int:
        """
        From which column on an edit acts that is asked for at a question mark: from the one behind which its answer begins, as
        far as that has come. What stands between them says nothing.
        """
        begins = {target[0] for target in targets}
        while column + 1 < len(self.ids) and not self.content[column + 1] and self.ids[column + 1] not in begins:
            column += 1
        return column

    def _decide(self, question: Question, targets_of: Callable[[int], tuple[tuple[int, ...], ...]]) -> None:
        column, kind, name, edit, expert = question.column, question.kind, None, None, -1
        if kind == "end" and self.answer is not None and not self.answer.begun:
            return
        last = self._last_question(column) if kind == "end" and question.own is None else None
        if last is not None and self.sentences(last.column + 1, column) <= BETWEEN:
            named_since = any(option.name.first > last.column for option in question.options)
            if not (named_since and question.asked_for()):
                if last.edit is not None and not self._has_said(last.targets, last.column + 1, column):
                    self._ask(replace(last, column=column, kind=kind, start=column))
                return
        if question.own is not None:
            edit, expert = question.own.edit, question.own.expert
        else:
            option = question.asked_for(self._asked_in_sentence(column) if kind == "guess" else [])
            if option is not None:
                name, edit, expert = (option.name.first, option.name.last), option.edit, option.expert
        if edit is None and kind != "mark":
            return
        targets = () if edit is None else targets_of(edit)
        start = self._answer_begins(column, targets) if kind == "mark" and self.prompt is None else column
        if question.own is not None and question.own.start < question.own.last:
            start = min(start, question.own.start)
        self._ask(Decision(column, kind, edit, expert, targets, name, start))

    def _asked_in_sentence(self, column: int) -> list[tuple[int, int]]:
        begin = self.begins[column]
        return [each.name for each in self.decisions if each.name is not None and each.column >= begin]

    def _last_question(self, column: int) -> Decision | None:
        """The last decision at a question mark in the turn before a column."""
        turn = self.turn(column)
        asked = [each for each in self.decisions if each.kind == "mark" and turn <= each.column < column]
        return asked[-1] if asked else None

    def _is_past(self, decision: Decision) -> bool:
        """
        Whether a question lies within a prompt: it is answered, if at all, at the end of that. What was answered before is
        given, and left to the base model.
        """
        is_answered_there = self.answers_all and decision.kind == "end"
        return self.prompt is not None and decision.column < self.prompt - 1 and not is_answered_there

    def close_past(self) -> None:
        """Let nothing act that was asked for within the prompt, as far as that is known to reach now."""
        if self.acting is not None and self._is_past(self.acting):
            self._close()

    def _ask(self, decision: Decision) -> None:
        self.decisions.append(decision)
        if decision.edit is None or self._is_past(decision):
            self._close()
        else:
            self._open(decision)

    def _open(self, decision: Decision) -> None:
        self.acting, self.answer = decision, Answer(decision.targets)

    def _close(self) -> None:
        self.acting = self.answer = None

    def _read_answer(self, column: int) -> None:
        if self.acting is None or self.answer is None:
            return
        if not self.answer.read(self.ids[column], self.kinds[column]):
            self._close()
