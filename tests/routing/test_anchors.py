"""The anchors of an adapter and the search for them."""

from __future__ import annotations

import pytest
import torch

from anchored import bank, prompt, subject
from lemoe_hf.routing.anchors import Anchors


def test_adding_and_removing_leaves_other_anchors_bit_identical():
    anchors = bank(prompt([1, 2, 3], 0), subject([2, 3], 0))
    before = {name: tensor.clone() for name, tensor in anchors.named_buffers()}
    anchors.add([prompt([4, 5], 1), subject([5], 1)])
    for name, tensor in before.items():
        assert torch.equal(getattr(anchors, name)[: len(tensor)], tensor)
    anchors.remove(1)
    for name, tensor in before.items():
        assert torch.equal(getattr(anchors, name), tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_conversion_leaves_thresholds_alone(dtype):
    anchors = bank(subject([2, 3], 0, threshold=0.9123))
    before = anchors.threshold.clone()
    anchors.to(dtype)
    assert anchors.threshold.dtype == torch.float32
    assert torch.equal(anchors.threshold, before)


def test_search_agrees_with_a_plain_loop():
    """A thousand random anchors over a small vocabulary, so that most are found somewhere."""
    generator = torch.Generator().manual_seed(0)
    spans = [tuple(torch.randint(0, 9, (2 + i % 4,), generator=generator).tolist()) for i in range(1000)]
    anchors = bank(*[subject(span, i, threshold=1.0) for i, span in enumerate(spans)])
    ids = torch.randint(0, 9, (5, 12), generator=generator)
    for row, matches in zip(ids.tolist(), anchors.find(ids), strict=True):
        expected = {
            (first, i)
            for i, span in enumerate(spans)
            for first in range(len(row))
            if tuple(row[first : first + len(span)]) == span
        }
        assert {(match.first, match.edit) for match in matches} == expected


def test_next_edit_counts_on_from_the_highest():
    assert Anchors().next_edit() == 0
    assert bank(prompt([1], 4), prompt([2], 2)).next_edit() == 5


def test_span_gives_back_an_edits_prompt():
    anchors = bank(subject([2, 3], 0), prompt([1, 2, 3], 0), prompt([4, 5], 1))
    assert anchors.span(0) == [1, 2, 3]
    assert anchors.span(1) == [4, 5]


def test_prompts_of_an_edit_are_found_in_each_spelling_in_whatever_order_edits_came():
    anchors = bank(prompt([7], 4), subject([8], 2), prompt([1, 2], 2), prompt([5], 3), prompt([3, 2, 6], 2))
    assert [anchors.prompts(edit) for edit in (1, 2, 3, 4, 5)] == [[], [[1, 2], [3, 2, 6]], [[5]], [[7]], []]
    anchors.remove(2)
    assert [anchors.prompts(edit) for edit in (2, 3, 4)] == [[], [[5]], [[7]]]
