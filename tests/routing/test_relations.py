"""What edits are about, and how surely a prompt asks for that."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gated import discriminant
from lemoe_hf.routing.relations import BACKGROUND, TENTHS, WORDS, Relations, features_of, vectors_of, words_of
from lemoe_hf.routing.together import check_sizes


WIDTH = 40


def features(num: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(seed))


def fitted() -> Relations:
    """As adapters from before have them."""
    relations = Relations()
    relations.mean, relations.directions = discriminant(features(300), torch.arange(60).repeat(5))
    relations.cohort = relations.embed(features(50, 1)).bfloat16()
    return relations


def of_words() -> Relations:
    relations, draw = Relations(), torch.Generator().manual_seed(0)
    directions = torch.randn(WIDTH, Relations.num_directions, generator=draw)
    relations.learn(directions, features(1, 3)[0] / 20, torch.eye(50), features(50, 4))
    return relations


def unit(*values: float) -> torch.Tensor:
    return F.pad(torch.tensor(values), (0, Relations.num_directions - len(values)))


# -------------------------------------------------------------------------------------------------------------- scoring


def test_features_are_of_unit_size_in_every_layer():
    layers = [torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, -200.0]], dtype=torch.bfloat16)]
    features = features_of(layers)
    assert features.dtype == torch.float32
    expected = torch.tensor([[3 / 12.5**0.5, 4 / 12.5**0.5, 0, -(2**0.5)]])
    torch.testing.assert_close(features, expected)


def test_embeddings_are_unit_vectors_of_what_differs_from_the_mean():
    relations = Relations(num_features=3)
    relations.mean = torch.tensor([1.0, 2.0, 3.0])
    relations.directions[0, 0] = relations.directions[1, 1] = 2.0
    embedded = relations.embed(torch.tensor([[[4.0, 6.0, 50.0]], [[1.0, 1.0, -50.0]]]))
    torch.testing.assert_close(embedded, torch.stack([unit(0.6, 0.8), unit(0.0, -1.0)])[:, None])


def test_parts_of_the_features_add_up():
    relations, found = fitted(), features(24, 2)
    for cut in (1, 25):
        parts = relations.project(found[:, :cut]) + relations.project(found[:, cut:], cut)
        torch.testing.assert_close(parts, relations.project(found), rtol=1e-4, atol=1e-4)


def test_words_are_of_one_size():
    words = words_of(torch.tensor([[3.0, 4.0], [0.0, -200.0]], dtype=torch.bfloat16))
    assert words.dtype == torch.float32
    torch.testing.assert_close(words.pow(2).mean(-1).sqrt(), torch.full((2,), WORDS))


def hand_made() -> Relations:
    """Thirty reference prompts near those scored below, and fifty that are far from them."""
    relations = Relations()
    near, far = torch.stack([unit(1.0, 0.0), unit(0.0, 1.0)]), unit(-0.5, -0.5)
    relations.cohort = torch.cat([near.repeat(15, 1), far.expand(50, -1)]).bfloat16()
    return relations


def test_a_score_is_the_cosine_above_what_the_nearest_references_have():
    """Cosine 0.6; the nearest have 1 and 0 with the key, in equal parts, and 0.6 and 0.8 with the prompt."""
    deviation = (30 / 29) ** 0.5
    expected = ((0.6 - 0.5) / (0.5 * deviation) + (0.6 - 0.7) / (0.1 * deviation)) / 2
    score = hand_made().score(unit(1.0, 0.0)[None], unit(0.6, 0.8)[None])
    torch.testing.assert_close(score, torch.tensor([[expected]]), rtol=1e-4, atol=1e-4)


def test_scores_are_symmetric_and_of_each_key_against_each_prompt():
    relations = fitted()
    left, right = relations.embed(features(24, 2)), relations.embed(features(5, 3))
    score = relations.score(left, right)
    assert score.shape == (24, 5)
    torch.testing.assert_close(score, relations.score(right, left).T)
    torch.testing.assert_close(score[3:4, 1:2], relations.score(left[3:4], right[1:2]))


@pytest.mark.parametrize("relations", [fitted(), of_words()], ids=["hidden states", "words"])
def test_pairs_have_the_scores_of_each_key_against_each_prompt(relations):
    keys, asked = relations.embed(features(24, 2)), relations.embed(features(5, 3))
    pair = torch.tensor([4, 0, 0, 2, 1, 3] * 4)
    expected = relations.score(keys, asked)[torch.arange(24), pair]
    torch.testing.assert_close(relations.score_pairs(keys, asked, pair), expected)


# ---------------------------------------------------------------------------------------------------------------- words


def test_words_count_by_their_emphasis_and_as_often_as_they_stand_there():
    embedded = torch.tensor([[3.0, 4.0], [0.0, -7.0], [2.0, 0.0]])
    emphasis, directions = torch.tensor([0.5, 0.0]), torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]])
    words = F.rms_norm(embedded, (2,))
    one, _, three = (float((0.5 * word[0]).exp()) for word in words)
    summed = torch.stack([2 * one * words[0] + three * words[2], words[1], torch.zeros(2)]) @ directions
    counts = torch.tensor([[2.0, 0, 1], [0, 1, 0], [0, 0, 0]])
    found = vectors_of(embedded, directions, emphasis, counts)
    torch.testing.assert_close(found, F.normalize(summed, dim=-1))
    assert torch.equal(found[2], torch.zeros(3))


def test_no_word_counts_without_end():
    embedded = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    found = vectors_of(embedded, torch.eye(2), torch.tensor([1e9, -1e9]), torch.ones(1, 2))
    torch.testing.assert_close(found, F.normalize(torch.tensor([[1.0, 6.1e-6]]), dim=-1), rtol=0, atol=1e-6)


def test_a_score_of_words_is_the_cosine_in_tenths_less_what_the_nearest_references_have():
    """Cosine 0.6; the nearest have 0.6 and 0.8 with the prompt, in equal parts."""
    relations = hand_made()
    assert not relations.is_of_words
    relations.emphasis = torch.zeros(3)
    assert relations.is_of_words
    score = relations.score(unit(1.0, 0.0)[None], unit(0.6, 0.8)[None])
    torch.testing.assert_close(score, torch.tensor([[TENTHS * (0.6 - BACKGROUND * 0.7)]]), rtol=1e-2, atol=1e-2)


def test_what_is_kept_of_learning():
    empty, learned = Relations(), of_words()
    assert (empty.is_fitted, learned.is_fitted) == (False, True)
    assert learned.directions.shape == (WIDTH, 48)
    assert learned.cohort.shape == (50, 48)
    torch.testing.assert_close(
        learned.cohort.float(), learned.embed_words(features(50, 4), torch.eye(50)), rtol=0, atol=1e-2
    )


@pytest.mark.parametrize("name", ["keys", "mean", "emphasis"])
def test_tensors_that_do_not_go_together_are_refused(name):
    state = {f"relations.{name}": tensor for name, tensor in of_words().named_buffers()}
    check_sizes("", state)
    with pytest.raises(ValueError, match="damaged"):
        check_sizes("", state | {f"relations.{name}": torch.zeros(7)})


# ----------------------------------------------------------------------------------------------------------------- keys


def with_keys() -> Relations:
    relations = of_words()
    relations.thresholds.fill_(1.5)
    relations.add([2, 3, 7], relations.embed(features(3, 2)))
    return relations


def test_keys_are_appended_with_the_threshold_of_the_time():
    relations = with_keys()
    before = relations.keys.clone()
    relations.thresholds.fill_(9.0)
    relations.add([8], -before[:1].float())
    assert len(relations) == 4
    assert relations.edit.tolist() == [2, 3, 7, 8]
    assert relations.threshold.tolist() == [1.5, 1.5, 1.5, 9.0]
    assert torch.equal(relations.keys, torch.cat([before, -before[:1]]))


def test_rows_of_edits_with_a_key_and_without():
    edits = torch.tensor([[[7, 2], [3, 8]], [[-1, 0], [5, 7]]])
    assert with_keys().rows_of(edits).tolist() == [[[2, 0], [1, -1]], [[-1, -1], [-1, 2]]]
    assert Relations().rows_of(edits).eq(-1).all()


def test_a_removed_edit_leaves_the_keys_of_others():
    relations, before = with_keys(), with_keys()
    relations.remove(3)
    relations.remove(4)  # has none
    assert relations.edit.tolist() == [2, 7]
    assert torch.equal(relations.keys, before.keys[[0, 2]])
    assert torch.equal(relations.threshold, before.threshold[[0, 2]])
    assert relations.rows_of(torch.tensor([2, 3, 7])).tolist() == [0, -1, 1]


@pytest.mark.parametrize("cast", ["double", "half", "bfloat16", "float"])
def test_what_is_stored_keeps_its_bits_whatever_a_model_is_cast_to(cast):
    before = dict(with_keys().named_buffers())
    for holder in (with_keys(), torch.nn.Sequential(with_keys())[0]):
        getattr(holder, cast)()
        for name, tensor in holder.named_buffers():
            assert tensor.dtype == before[name].dtype, name
            assert torch.equal(tensor, before[name]), name
