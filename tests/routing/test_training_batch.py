"""What a training loop edits, told by labels alone."""

from __future__ import annotations

import warnings
from functools import partial

import pytest

from anchored import bank, prompt
from lemoe_hf.routing.layout import Piece
from lemoe_hf.routing.training_batch import Lesson, lessons_of, new_edits


BOS, NONE = 1, -100


def piece(tokens: list[int], answered: tuple[int, ...] = (), row: int = 0, first: int = 0) -> Piece:
    """A text from the column `first` on, in which the tokens in these places have labels."""
    labels = [token if i in answered else NONE for i, token in enumerate(tokens)]
    return Piece(row, list(range(first, first + len(tokens))), tokens, labels)


lesson = partial(Lesson, bos=BOS)


def test_an_expert_acts_from_the_prompts_last_token_to_the_last_but_one_label():
    found = lessons_of([piece([20, 21, 22, 30, 31, 32], (3, 4, 5), row=2, first=4)], BOS)
    assert found == [lesson(2, [6, 7, 8], (20, 21, 22), (30, 31, 32))]


def test_every_turn_is_a_lesson():
    found = lessons_of([piece([20, 21, 30, 22, 31, 32, 23], (2, 4, 5)), piece([24, 33], (1,), first=7)], BOS)
    assert found == [
        lesson(0, [1], (20, 21), (30,)),
        lesson(0, [3, 4], (22,), (31, 32)),
        lesson(0, [7], (24,), (33,)),
    ]


def test_an_answer_without_a_prompt_is_none():
    found = lessons_of([piece([30, 31, 20, 32], (0, 1, 3)), piece([40, 41])], BOS)
    assert found == [lesson(0, [2], (20,), (32,))]


def test_the_token_before_a_text_is_told_apart():
    """A router reads it, and anchors leave it out; elsewhere it is a token like others."""
    first, second = lessons_of([piece([BOS, 20, 30, BOS, 21, BOS, 31], (2, 6))], BOS)
    assert (first.prompt, first.read) == ((20,), (BOS, 20))
    assert (second.prompt, second.read) == ((21, BOS), (BOS, 21, BOS))
    (without,) = lessons_of([piece([BOS, 20, 30], (2,))], None)
    assert without.prompt == without.read == (BOS, 20)


def test_without_labels_the_whole_text_is_trained():
    assert lessons_of([Piece(0, [0, 1], [20, 21])], BOS) == [lesson(0, [0, 1], (20, 21), ())]


@pytest.mark.parametrize("text", [piece([20, 21], (0, 1)), piece([20, 21])])
def test_labels_without_a_prompt_are_no_edit_and_say_so(text):
    with pytest.warns(UserWarning, match="no edit is made"):
        assert lessons_of([text], BOS) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lessons_of([], BOS) == []


def test_new_prompts_leave_an_anchor_that_ends_with_them():
    lessons = [Lesson(0, [1], (20, 21), (30,)), Lesson(1, [1], (20, 21), (31,)), Lesson(2, [0, 1], (22, 23), ())]
    new, made, entries = new_edits(bank(), lessons, expert=4, first=0)
    assert new == lessons[1:]  # of one prompt the latest
    assert [(each.tokens, each.edit, each.expert, each.start, each.is_prompt) for each in made] == [
        ((20, 21), 0, 4, 1, True),
        ((22, 23), 1, 4, 0, True),
    ]
    assert entries == [
        {"id": 0, "expert": 4, "prompt_ids": (20, 21), "target_ids": [31]},
        {"id": 1, "expert": 4, "prompt_ids": (22, 23), "target_ids": []},
    ]


def test_a_prompt_in_training_is_stored_once_and_one_that_was_committed_again():
    anchors = bank(prompt([20, 21], 0, expert=3), prompt([22, 23], 5, expert=4))
    lessons = [Lesson(0, [1], (20, 21), (30,)), Lesson(0, [1], (22, 23), (31,)), Lesson(0, [], (), (32,))]
    _, made, _ = new_edits(anchors, lessons, expert=4, first=6)
    assert [(each.tokens, each.edit) for each in made] == [((20, 21), 6)]
