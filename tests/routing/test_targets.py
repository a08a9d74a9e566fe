"""What edits answer."""

from __future__ import annotations

import pytest
import torch

from lemoe_hf.routing.targets import Targets
from worded import targets_of


def some() -> Targets:
    return targets_of((2, [5, 6, 7]), (2, [8]), (4, [9, 9]))


def test_an_edit_has_its_targets_in_each_spelling_and_others_have_none():
    assert some().of(2) == ((5, 6, 7), (8,))
    assert some().of(4) == ((9, 9),)
    assert [some().of(edit) for edit in (0, 3, 5, -1)] == [()] * 4
    assert Targets().of(0) == ()
    assert len(some()) == 3


def test_targets_are_appended_and_those_before_stay():
    targets = some()
    targets.add([])
    targets.add([(7, (1,)), (7, (2, 3))])
    assert targets.of(2) == some().of(2)
    assert targets.of(7) == ((1,), (2, 3))


@pytest.mark.parametrize("edit", [2, 3, 4])
def test_a_removed_edit_leaves_the_targets_of_others(edit):
    targets = some()
    targets.remove(edit)
    for each in (2, 4):
        assert targets.of(each) == (() if each == edit else some().of(each))
    assert int(targets.lengths.sum()) == len(targets.tokens)


def test_targets_keep_their_bits_whatever_a_model_is_cast_to():
    targets = some().half()
    assert all(tensor.dtype == torch.int32 for tensor in targets.buffers())
    assert targets.of(2) == some().of(2)
