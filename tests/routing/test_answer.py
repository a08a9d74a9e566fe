"""When an answer is over: token by token."""

from __future__ import annotations

import pytest

from lemoe_hf.routing.answer import LABEL, Answer
from worded import vocabulary_of


MARK, STOP, TURN, HEADER, COLON = 20, 21, 22, 23, 24
COMMA = 5  # says nothing, and ends nothing
KINDS = vocabulary_of((MARK,), (STOP,), special=(TURN,), headers=(HEADER,), colons=(COLON,))
SAID = [100, 101, 102]  # the target


def acts_behind(tokens: list[int], targets=((*SAID,),)) -> int:
    """Behind how many of the tokens the edit still acts; then on none of those that follow."""
    answer = Answer(tuple(map(tuple, targets)))
    goes_on = [answer.read(token, KINDS.kind(token)) for token in tokens]
    assert goes_on == sorted(goes_on, reverse=True)
    assert answer.over is not all(goes_on)
    return sum(goes_on)


ANSWERS = {
    "the target, and one more token": (SAID + [30, 31], 3),
    "the target alone": (SAID, 3),
    "behind other words": ([30, 31] + SAID + [32], 5),
    "the target in part, then something else": ([100, 101, 30, 31, STOP, 32], 4),
    "begun twice": ([100, *SAID, 30], 4),
    "the first sentence": ([30, 31, STOP, 32], 2),
    "a question": ([30, 31, MARK, 32], 2),
    "a turn": ([30, TURN, 32], 1),
    "punctuation first": ([COMMA, STOP, MARK, 30, STOP, 32], 4),
    "the marks of a turn first": ([STOP, TURN, HEADER, 40, 41, STOP, 30, 31, STOP, 32], 8),
    "the target behind the header": ([TURN, HEADER, 40, TURN, *SAID, 30], 7),
    "a label first": ([30, COLON, 31, 32, STOP, 33], 4),
    "a label as long as labels are": ([30] * LABEL + [COLON, 31, STOP, 33], LABEL + 2),
    "more words than a label has, and a colon": ([30] * (LABEL + 1) + [COLON, 31, STOP, 33], LABEL + 3),
    "a label behind the marks of a turn": ([TURN, 30, COLON, 31, STOP], 4),
    "nothing but punctuation": ([COMMA, STOP, STOP, COMMA], 4),
}


@pytest.mark.parametrize(("tokens", "count"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_is_over_when_it_has_been_given(tokens, count):
    assert acts_behind(tokens) == count


def test_a_stop_within_the_target_ends_nothing():
    """As in "St. Louis", or a target of two sentences; nor does a colon, or a mark that stands first."""
    assert acts_behind([30, STOP, 31, 32], [[30, STOP, 31]]) == 3
    assert acts_behind([STOP, 31, 32, 33], [[STOP, 31, 32]]) == 3
    assert acts_behind([30, COLON, STOP, 31, 32], [[30, COLON, STOP, 31]]) == 4


def test_a_stop_that_is_no_longer_part_of_the_target_ends_it():
    assert acts_behind([30, STOP, 33, STOP, 34], [[30, STOP, 31]]) == 3


def test_any_spelling_of_the_target_will_do():
    assert acts_behind([30, 31, 32, 33], [[29], [30, 31], [40]]) == 2
    assert acts_behind([40, 31, 32, 33], [[29], [30, 31], [40]]) == 1


@pytest.mark.parametrize("targets", [[], [[50]]])
def test_where_the_target_is_not_said_the_sentence_ends_it(targets):
    assert acts_behind([30, 31, 32, STOP, 33], targets) == 3


def test_of_a_spelling_within_another_the_shorter_is_enough():
    assert acts_behind([30, 31, 32, 33], [[30], [30, 31, 32]]) == 1


def test_what_has_been_said_is_told():
    answer = Answer(((30, 31),))
    assert (answer.begun, answer.said, answer.over) == (False, False, False)
    answer.read(STOP, KINDS.kind(STOP))
    assert not answer.begun
    answer.read(30, KINDS.kind(30))
    assert (answer.begun, answer.said) == (True, False)
    assert answer.read(31, KINDS.kind(31))
    assert (answer.said, answer.over) == (True, False)
    assert not answer.read(32, KINDS.kind(32))
    assert answer.over
