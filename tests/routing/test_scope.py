"""Which of several anchors found in a text count, at one of its columns."""

from __future__ import annotations

import pytest
import torch

from anchored import bank, prompt, subject
from lemoe_hf.routing.anchors import Anchors, Match
from lemoe_hf.routing.scope import begins_longer_name, names, own_prompt
from worded import vocabulary_of


CONTINUING = (13, 14)
NOTHING, NAMES_GO_ON = vocabulary_of(), vocabulary_of(continuing=CONTINUING)


def in_scope(anchors: Anchors, ids: list[int], threshold=None, vocabulary=NOTHING, column=None) -> list[Match]:
    """The edit whose own prompt ends at a column, by default the last, or else the subjects that were named up to it."""
    column = len(ids) - 1 if column is None else column
    found = anchors.find(torch.tensor([ids], dtype=torch.long), threshold)[0]
    own = own_prompt(found, column, column)
    return [own] if own else names(anchors, found, ids, vocabulary, column)


def edits_of(anchors: Anchors, rows, threshold=None, **options) -> list[list[int]]:
    return [[match.edit for match in in_scope(anchors, ids, threshold, **options)] for ids in rows]


def test_nothing_is_found_without_anchors_or_without_tokens():
    assert in_scope(Anchors(), [1, 2, 3]) == []
    assert in_scope(bank(prompt([1, 2], 0)), []) == []


def test_a_subject_is_found_anywhere_and_acts_from_its_last_token():
    anchors = bank(subject([7, 8, 9], 0))
    for lead in range(6):
        (match,) = in_scope(anchors, [1] * lead + [7, 8, 9, 2])
        assert (match.first, match.last, match.start, match.score) == (lead, lead + 2, lead + 2, 1.0)


def test_a_subject_is_an_ordered_span_and_not_a_bag():
    anchors = bank(subject([7, 8, 9], 0))
    assert edits_of(anchors, [[9, 8, 7, 1], [7, 1, 8, 9], [7, 8, 1, 9]]) == [[], [], []]


def test_embeddings_of_no_known_token_are_never_matched():
    anchors = bank(subject([7, 8], 0))
    assert edits_of(anchors, [[-2, 7, 8], [7, -2, 8], [7, 8, -2]]) == [[0], [], [0]]


@pytest.mark.parametrize(("threshold", "found"), [(0.5, [0]), (0.75, [0]), (0.76, []), (None, [])])
def test_the_threshold_is_the_share_of_tokens_found_in_a_row(threshold, found):
    """Three of four tokens are there; a config's threshold replaces the anchor's own, which is .9."""
    assert edits_of(bank(subject([6, 7, 8, 9], 0)), [[6, 5, 8, 9]], threshold) == [found]


def test_an_anchor_that_sticks_out_of_the_prompt_is_matched_partly():
    anchors = bank(subject([5, 7, 8, 9], 0, threshold=0.75))
    assert edits_of(anchors, [[7, 8, 9, 1], [1, 5, 7, 9]]) == [[0], []]


def test_an_anchor_that_agrees_in_part_acts_from_a_token_of_the_prompt():
    (match,) = in_scope(bank(subject([9, 8, 5, 4], 0, threshold=0.5)), [1, 2, 9, 8])
    assert (match.first, match.last, match.start) == (2, 3, 3)


def test_a_threshold_does_not_loosen_whole_prompts():
    assert edits_of(bank(prompt([6, 7, 8, 9], 0)), [[6, 5, 8, 9]], 0.5) == [[]]


def test_the_longer_of_nested_matches_counts():
    anchors = bank(subject([7, 8], 0), subject([7, 8, 9], 1), subject([8], 2))
    assert edits_of(anchors, [[1, 7, 8, 9], [1, 7, 8, 1], [1, 8, 1, 1]]) == [[1], [0], [2]]


@pytest.mark.parametrize(("behind", "found"), [(13, []), (14, []), (1, [0]), (-2, [0])])
def test_a_subject_that_goes_on_is_the_beginning_of_a_longer_name(behind, found):
    anchors, ids = bank(subject([7, 8], 0), prompt([7, 8, 1], 0)), [2, 7, 8, behind, 2]
    assert edits_of(anchors, [ids], vocabulary=NAMES_GO_ON) == [found]
    assert edits_of(anchors, [ids]) == [[0]]


def test_what_stands_behind_a_column_has_no_say():
    """At its last token nobody knows whether a name goes on, nor whether it is part of a longer one."""
    anchors = bank(subject([7, 8], 0), subject([7, 8, 9], 1))
    assert edits_of(anchors, [[1, 7, 8, 13]], vocabulary=NAMES_GO_ON, column=2) == [[0]]
    assert edits_of(anchors, [[1, 7, 8, 13]], vocabulary=NAMES_GO_ON, column=3) == [[]]
    assert edits_of(anchors, [[1, 7, 8, 9]], column=1) == [[]]
    assert edits_of(anchors, [[1, 7, 8, 9]], column=2) == [[0]]
    assert edits_of(anchors, [[1, 7, 8, 9]], column=3) == [[1]]


def test_a_name_counts_from_where_enough_of_it_has_come():
    anchors = bank(subject([6, 7, 8, 9], 0))
    found = [in_scope(anchors, [5, 6, 7, 8, 9, 5], 0.75, column=column) for column in range(6)]
    assert [[(match.first, match.last) for match in row] for row in found] == [
        [],
        [],
        [],
        [(1, 3)],
        [(1, 4)],
        [(1, 4)],
    ]


def test_a_longer_name_hides_no_edit_of_its_own_and_no_whole_prompt():
    anchors = bank(subject([7, 8], 0), prompt([7, 8, 1], 0), subject([7, 8, 13], 1), prompt([5, 7, 8, 13], 1))
    anchors.add([prompt([2, 7, 8], 2)])
    rows = [[1, 7, 8, 13, 1], [2, 7, 8], [2, 7, 8, 14, 1]]
    assert edits_of(anchors, rows, vocabulary=NAMES_GO_ON) == [[1], [2], []]


def test_a_subject_may_go_on_as_it_does_in_its_own_prompt():
    anchors = bank(subject([7, 8], 0), prompt([1, 7, 8, 13, 2], 0), subject([7, 8], 1), prompt([7, 8, 1], 1))
    (match,) = in_scope(anchors, [5, 7, 8, 14, 6], vocabulary=NAMES_GO_ON)
    assert (match.edit, match.rivals) == (0, ())


def test_a_subject_may_go_on_as_it_does_in_another_spelling_of_its_own_prompt():
    anchors = bank(subject([6], 0), subject([9], 0), prompt([6, 13, 2], 0), prompt([9, 13, 2], 0))
    assert edits_of(anchors, [[5, 9, 14, 1]], vocabulary=NAMES_GO_ON) == [[0]]


def test_what_goes_on_in_the_own_prompt_is_the_whole_subject():
    anchors = bank(subject([7, 8], 0), prompt([7, 8, 1, 8, 13], 0))
    assert edits_of(anchors, [[7, 8, 14]], vocabulary=NAMES_GO_ON) == [[]]
    (match,) = anchors.find(torch.tensor([[7, 8, 14]]))[0]
    assert begins_longer_name(anchors, match, [7, 8, 14], NAMES_GO_ON, column=2)
    assert not begins_longer_name(anchors, match, [7, 8, 14], NAMES_GO_ON, column=1)


def test_an_own_prompt_ends_where_it_asks():
    """Or before, as far as nothing has been said since; and never behind the column."""
    found = bank(prompt([7, 8], 0)).find(torch.tensor([[1, 7, 8, 2, 3]]))[0]
    assert [own_prompt(found, column, column) is not None for column in range(5)] == [False, False, True, False, False]
    assert own_prompt(found, 4, said_until=2).edit == 0
    assert own_prompt(found, 4, said_until=3) is None
    assert own_prompt(found, 1, said_until=0) is None


def test_of_two_own_prompts_the_longer_counts():
    anchors = bank(prompt([1, 7, 8], 0), prompt([7, 8], 1))
    assert edits_of(anchors, [[1, 7, 8], [2, 7, 8]]) == [[0], [1]]


def test_matches_beside_each_other_follow_one_another():
    anchors = bank(subject([7, 8], 0), subject([9], 1))
    assert edits_of(anchors, [[7, 8, 1, 9], [9, 1, 7, 8]]) == [[0, 1], [1, 0]]


def test_of_two_edits_of_one_prompt_the_later_counts_and_removal_gives_back_the_earlier():
    anchors = bank(prompt([1, 2, 3], 0), prompt([1, 2, 3], 5), prompt([1, 2, 3], 3))
    assert edits_of(anchors, [[1, 2, 3]]) == [[5]]
    anchors.remove(5)
    assert edits_of(anchors, [[1, 2, 3]]) == [[3]]
    anchors.remove(3)
    assert edits_of(anchors, [[1, 2, 3]]) == [[0]]


def test_of_two_edits_of_one_prompt_the_later_counts_however_it_was_spelled():
    """An editor stores a prompt in two spellings, a training loop as it came."""
    one = [prompt([1, 2, 3], 0)]
    two = [prompt([1, 2, 3], 1), prompt([4, 2, 3], 1)]
    assert edits_of(bank(*one, *two), [[1, 2, 3]]) == [[1]]


def test_of_two_edits_of_one_subject_the_one_with_the_nearer_prompt_counts():
    anchors = bank(prompt([1, 2, 7, 8], 0), subject([7, 8], 0), prompt([3, 4, 7, 8], 1), subject([7, 8], 1))
    assert edits_of(anchors, [[9, 1, 7, 8], [9, 3, 7, 8], [9, 9, 7, 8]]) == [[0], [1], [1]]


def test_of_two_edits_of_one_subject_any_spelling_of_the_prompt_counts():
    anchors = bank(prompt([1, 7], 0), prompt([4, 7], 0), subject([7], 0), prompt([2, 7], 1), subject([7], 1))
    assert edits_of(anchors, [[4, 3, 7], [1, 3, 7], [2, 3, 7], [3, 3, 7]]) == [[0], [0], [1], [1]]


LATER = {
    "same subject": [prompt([4, 5, 7, 8], 1), subject([7, 8], 1)],
    "a subject within": [prompt([3, 8], 1), subject([8], 1)],
    "a subject that overlaps": [prompt([1, 2], 1), subject([2, 7], 1)],
    "the prompt within a longer one": [prompt([9, 1, 7, 8, 9], 1)],
    "a prompt within the prompt": [prompt([7, 8], 1)],
    "the prompt as a subject": [prompt([9, 1, 7, 8], 1), subject([1, 7, 8], 1)],
    "the prompt as a subject, twice": [prompt([1, 7, 8, 1, 7, 8], 1), subject([1, 7, 8], 1)],
    "the prompt as the most of a subject": [subject([5, 1, 7, 8], 1, threshold=0.75)],
}


@pytest.mark.parametrize("later", LATER.values(), ids=LATER)
def test_no_later_edit_takes_over_an_edits_own_prompt(later):
    anchors = bank(prompt([1, 7, 8], 0), subject([7, 8], 0))
    assert edits_of(anchors, [[1, 7, 8]]) == [[0]]
    anchors.add(later)
    assert edits_of(anchors, [[1, 7, 8]]) == [[0]]
