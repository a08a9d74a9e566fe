"""Which tokens of a batch belong to which text."""

from __future__ import annotations

import pytest
import torch

from gated import watched
from lemoe_hf.routing.layout import pieces_of, prompt_ends, token_labels
from tiny import edited, logits, prompts_of, put_edits


IDS = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]])


def pieces(ids=IDS, keeps_cache=False, **inputs) -> list[tuple[int, list[int], list[int]]]:
    return [(piece.row, piece.places, piece.tokens) for piece in pieces_of(ids, inputs, keeps_cache)]


WHOLE = [(row, list(range(5)), IDS[row].tolist()) for row in range(2)]


def test_a_row_is_a_text():
    assert pieces() == pieces(keeps_cache=True) == WHOLE
    assert pieces(attention_mask=torch.ones_like(IDS)) == WHOLE
    assert pieces(attention_mask=torch.ones(2, 1, 5, 5)) == WHOLE  # of four dimensions: it masks no tokens


@pytest.mark.parametrize(
    ("mask", "places"), [([0, 0, 1, 1, 1], [2, 3, 4]), ([1, 1, 1, 0, 0], [0, 1, 2]), ([0] * 5, [])]
)
def test_padding_is_no_part_of_it(mask, places):
    mask = torch.tensor([mask, [1] * 5])
    assert pieces(attention_mask=mask) == [(0, places, [11 + place for place in places]), WHOLE[1]]
    behind_a_cache = torch.cat([torch.zeros(2, 7, dtype=torch.long), mask], 1)
    assert pieces(attention_mask=behind_a_cache) == pieces(attention_mask=mask)


def test_positions_that_begin_anew_begin_another_text():
    position = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 5, 6, 7]])
    split = [(0, [0, 1, 2], [11, 12, 13]), (0, [3, 4], [14, 15]), WHOLE[1]]
    assert pieces(position_ids=position) == split
    assert pieces(IDS[:1], position_ids=position[:1]) == split[:2]
    assert pieces(position_ids=torch.arange(5)[None]) == WHOLE  # one row for all
    assert pieces(position_ids=position[None].expand(3, -1, -1)) == WHOLE  # of several kinds, as of images


def test_positions_of_padding_begin_nothing():
    mask, position = torch.tensor([[0, 0, 1, 1, 1], [1] * 5]), torch.tensor([[1, 1, 0, 1, 2], [0, 1, 2, 3, 4]])
    assert pieces(attention_mask=mask, position_ids=position)[1] == WHOLE[1]
    assert pieces(attention_mask=mask, position_ids=position)[0] == (0, [2, 3, 4], [13, 14, 15])


@pytest.mark.parametrize(("keeps_cache", "mask"), [(True, None), (False, torch.ones_like(IDS))])
def test_texts_that_would_see_each_other_are_an_error(keeps_cache, mask):
    position = torch.tensor([[0, 1, 2, 3, 4], [0, 1, 0, 1, 2]])
    with pytest.raises(ValueError, match="Row 1 holds several texts.*column 2"):
        pieces(keeps_cache=keeps_cache, attention_mask=mask, position_ids=position)


def test_other_ways_to_tell_texts_apart():
    split = [(0, [0, 1, 2], [11, 12, 13]), (0, [3, 4], [14, 15])]
    position = torch.tensor([[0, 1, 2, 0, 1]])
    for name in ("cu_seq_lens_q", "cu_seqlens"):
        assert pieces(IDS[:1], **{name: torch.tensor([0, 3, 5])}, position_ids=position) == split
    assert pieces(IDS[:1], cu_seq_lens_q=torch.tensor([0, 3, 3, 5, 5]), position_ids=position) == split
    assert pieces(seq_idx=torch.tensor([[0, 0, 0, 1, 1], [0] * 5])) == [*split, WHOLE[1]]
    with pytest.raises(ValueError, match="one row"):
        pieces(cu_seq_lens_q=torch.tensor([0, 3, 5]))


def test_labels_go_with_their_text():
    labels = torch.tensor([[-100, 12, 13, -100, 15], [-100] * 5])
    position = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 4]])
    found = pieces_of(IDS, {"labels": labels, "position_ids": position}, False)
    assert [piece.labels for piece in found] == [[-100, 12, 13], [-100, 15], [-100] * 5]
    mask = torch.tensor([[0, 1, 1, 1, 1], [1] * 5])
    found = pieces_of(IDS, {"labels": labels, "attention_mask": mask}, False)
    assert found[0].labels == [12, 13, -100, 15]
    assert pieces_of(IDS, {}, False)[0].labels is None


def test_labels_of_a_classifier_are_none_of_tokens():
    assert token_labels({"labels": torch.tensor([1, 0])}) is None
    assert token_labels({}) is None
    assert pieces_of(IDS, {"labels": torch.tensor([1, 0])}, False)[0].labels is None


@pytest.mark.parametrize(
    ("labels", "ends"),
    [
        ([-100, -100, 5, 6], [1]),
        ([-100, 5, -100, -100, 6, -100], [0, 3]),
        ([5, 6, -100, 7], [2]),
        ([5, 6, -100], []),
        ([-100, -100], [1]),
        ([5, 6], None),
    ],
)
def test_where_labels_tell_that_prompts_end(labels, ends):
    assert prompt_ends(labels) == ends


def test_texts_that_share_a_row_act_each_by_itself():
    """Packed by positions: what one asks for is none of the other's business."""
    model, prompts = edited(), prompts_of(3)
    put_edits(model, prompts, subjects=[(2, 4)] * 3)
    other = [210, 211, 212, 213]
    row = torch.tensor([[*prompts[0], *other, *prompts[1], 214]])
    position = torch.tensor([[*range(6), *range(4), *range(7)]])
    with watched(model) as acting:
        together = logits(model, row, position_ids=position, use_cache=False)
    assert acting == [[-1] * 5 + [0] + [-1] * 4 + [-1] * 5 + [1, 1]]
    alone = [logits(model, text)[0] for text in (prompts[0], other, [*prompts[1], 214])]
    torch.testing.assert_close(together[0], torch.cat(alone), rtol=1e-4, atol=1e-4)


def test_a_packed_row_behind_a_cache_is_an_error():
    model = edited()
    put_edits(model, prompts_of(1))
    with torch.no_grad():
        cache = model(input_ids=torch.tensor([[30, 31]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"several texts"):
        logits(model, [[32, 33, 34, 35]], position_ids=torch.tensor([[2, 3, 0, 1]]), past_key_values=cache)
