"""Order planning, on embeddings whose cosines are known."""

from __future__ import annotations

import math
import random
from collections import Counter
from typing import get_args

import pytest
import torch
from peft import PeftModel

from lemoe_hf import Edit, plan_order
from lemoe_hf.editing.ordering import OrderBy, anchors_of, batches_by_cluster, clusters_of, similarities
from lemoe_hf.editing.tokens import tokenize_edit
from tiny import edited, prompts_of, put_edits


PLANNED = ["kmeans", "hierarchical", "superposition"]
TOPICS = ["0123456789", "abcdefghi", "jklmnopqr", "ABCDEFGHI"]


def at(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1).float()


def of_topics(tokenizer, noise: float) -> PeftModel:
    """A tiny model in whose embeddings the letters of a topic are alike, and those of two topics orthogonal."""
    model = edited()
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight.copy_(noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))
        for token in range(len(tokenizer)):
            text = tokenizer.decode([token])
            for topic, letters in enumerate(TOPICS):
                if text and all(letter in letters for letter in text):
                    weight[token, topic] += 1
    return model


def edits_of(topics: list[int], seed: int = 0) -> list[Edit]:
    draw = random.Random(seed)
    prompts = ["".join(draw.choices(TOPICS[topic], k=8)) for topic in topics]
    assert len(set(prompts)) == len(prompts)
    return [Edit(prompt, "x") for prompt in prompts]


@pytest.fixture(scope="module")
def alternating() -> list[Edit]:
    return edits_of([0, 1] * 4)


# ----------------------------------------------------------------------------------------------------------- measures


def test_within_is_the_mean_of_the_batches_mean_pairwise_cosines():
    vectors = at(0, 60, 90, 90, 90)
    within, _ = similarities(vectors, [[0, 1], [2, 3, 4]])
    assert within == pytest.approx((0.5 + 1.0) / 2)
    within, _ = similarities(vectors, [[0, 1, 2], [3, 4]])  # cosines of 60, 90 and 30 degrees
    assert within == pytest.approx(((0.5 + 0.0 + math.sqrt(0.75)) / 3 + 1.0) / 2)


def test_between_is_the_mean_pairwise_cosine_of_the_centroids():
    vectors = at(0, 60, 90, 90, 150, 150)
    _, between = similarities(vectors, [[0, 1], [2, 3], [4, 5]])  # centroids at 30, 90 and 150 degrees
    assert between == pytest.approx((0.5 + 0.5 - 0.5) / 3)


def test_batches_of_one_edit_have_no_inner_similarity():
    within, between = similarities(at(0, 60, 60), [[0], [1, 2]])
    assert (within, between) == pytest.approx((1.0, 0.5))
    within, between = similarities(at(0, 60), [[0], [1]])
    assert math.isnan(within)
    assert between == pytest.approx(0.5)


def test_one_batch_is_like_no_other():
    within, between = similarities(at(0, 60), [[0, 1]])
    assert within == pytest.approx(0.5)
    assert math.isnan(between)


def test_an_anchor_is_the_mean_embedding_of_the_prompt_at_unit_norm(tokenizer):
    model = edited()
    edits = [Edit("The mayor of Port Ellen is", "Tom"), Edit("Who?", "Anna")]
    anchors = anchors_of(model, [tokenize_edit(tokenizer, edit, 512) for edit in edits])
    for anchor, edit in zip(anchors, edits, strict=True):
        mean = model.get_input_embeddings().weight[tokenizer(edit.prompt)["input_ids"]].mean(0)
        torch.testing.assert_close(anchor, mean / mean.norm())


# ------------------------------------------------------------------------------------------------- clusters to batches


def test_a_large_cluster_leaves_its_outskirts_to_a_small_one():
    vectors, labels = at(0, 10, 30, 90), torch.tensor([0, 0, 0, 1])  # the first cluster's centre is at 13 degrees
    assert batches_by_cluster(vectors, labels, 2) == [[1, 0], [3, 2]]


def test_a_batch_prefers_edits_of_its_own_cluster_to_nearer_ones():
    vectors, labels = at(0, 10, 30, 12, 80), torch.tensor([0, 0, 0, 1, 1])
    first, last = batches_by_cluster(vectors, labels, 3)
    assert sorted(first) == [0, 1, 2]
    assert sorted(last) == [3, 4]


def test_a_small_cluster_is_filled_up_with_the_nearest_that_are_left():
    vectors, labels = at(0, 0, 0, 0, 40, 41, 90), torch.tensor([0, 0, 0, 0, 1, 1, 2])
    batches = batches_by_cluster(vectors, labels, 3)
    # One edit at 0 degrees is left, and fills up the cluster at 40 rather than the one at 90 does.
    assert [sorted(batch) for batch in batches] == [[0, 1, 2], [3, 4, 5], [6]]


def test_fewer_clusters_than_batches_fill_all_batches():
    batches = batches_by_cluster(at(0, 0, 0, 0, 0), torch.zeros(5, dtype=torch.long), 2)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert sorted(sum(batches, [])) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("by", ["kmeans", "hierarchical"])
def test_clusters_are_those_of_the_data(by: str):
    labels = clusters_of(at(0, 100, 2, 103, 4, 200), 3, by, seed=0).tolist()
    assert labels[0] == labels[2] == labels[4]
    assert labels[1] == labels[3]
    assert len(set(labels)) == 3


# ------------------------------------------------------------------------------------------------------------ planning


def test_edits_as_given_are_cut_into_batches(tokenizer, alternating: list[Edit]):
    order = plan_order(alternating, of_topics(tokenizer, 0.0), tokenizer, by="none", step=4)
    assert order.permutation == list(range(8))
    assert order.batches == [alternating[:4], alternating[4:]]
    # Two of each topic in a batch: of 6 pairs 2 are the same, and both centroids are where both topics meet.
    assert (order.within, order.between) == pytest.approx((1 / 3, 1.0), abs=1e-6)
    assert order.gap == pytest.approx(-2 / 3, abs=1e-6)


@pytest.mark.parametrize("by", ["kmeans", "hierarchical"])
def test_clusters_gather_a_topic_in_a_batch(tokenizer, alternating: list[Edit], by: OrderBy):
    order = plan_order(alternating, of_topics(tokenizer, 0.0), tokenizer, by=by, step=4)
    assert order.permutation == [0, 2, 4, 6, 1, 3, 5, 7]
    assert order.batches == [alternating[::2], alternating[1::2]]
    assert (order.within, order.between, order.gap) == pytest.approx((1.0, 0.0, 1.0), abs=1e-6)


def test_random_is_a_shuffle_that_the_seed_decides(tokenizer, alternating: list[Edit]):
    model, before = of_topics(tokenizer, 0.0), torch.get_rng_state()
    orders = [plan_order(alternating, model, tokenizer, by="random", step=3, seed=seed) for seed in (0, 0, 1)]
    assert orders[0] == orders[1]
    assert orders[0].permutation != orders[2].permutation
    assert orders[0].permutation != sorted(orders[0].permutation)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("by", get_args(OrderBy))
@pytest.mark.parametrize("step", [2, 7, 20, 50])
def test_every_order_is_a_permutation_in_full_batches(tokenizer, by: OrderBy, step: int):
    edits = edits_of([0] * 9 + [1] * 3 + [2] * 7 + [0] * 4)
    model = of_topics(tokenizer, 0.1)
    order = plan_order(edits, model, tokenizer, by=by, step=step)
    assert sorted(order.permutation) == list(range(len(edits)))
    assert [edit for batch in order.batches for edit in batch] == [edits[i] for i in order.permutation]
    assert all(len(batch) == step for batch in order.batches[:-1])
    assert 1 <= len(order.batches[-1]) <= step
    assert repr(plan_order(edits, model, tokenizer, by=by, step=step)) == repr(order)  # `nan` is not equal to itself


@pytest.mark.parametrize("by", PLANNED)
def test_planned_batches_come_by_their_earliest_edit_and_keep_the_order_given(tokenizer, by: OrderBy):
    order = plan_order(edits_of([1, 0, 2] * 6), of_topics(tokenizer, 0.2), tokenizer, by=by, step=6)
    batches = [order.permutation[first : first + 6] for first in range(0, 18, 6)]
    assert batches == sorted(map(sorted, batches))
    assert order.permutation != sorted(order.permutation)


@pytest.mark.parametrize("by", ["kmeans", "hierarchical"])
def test_a_batch_that_is_not_full_comes_last(tokenizer, by: OrderBy):
    order = plan_order(edits_of([0, 1, 1]), of_topics(tokenizer, 0.0), tokenizer, by=by, step=2)
    assert order.permutation == [1, 2, 0]


@pytest.mark.parametrize("by", get_args(OrderBy))
def test_one_edit_is_one_batch(tokenizer, alternating: list[Edit], by: OrderBy):
    assert plan_order(alternating[:1], edited(), tokenizer, by=by, step=2).batches == [alternating[:1]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by", ["kmeans", "hierarchical"])
def test_clusters_are_more_alike_within_than_chance_where_there_are_topics(tokenizer, by: OrderBy, seed: int):
    topics = random.Random(seed).choices(range(4), weights=[6, 3, 2, 1], k=60)
    edits, model = edits_of(topics, seed), of_topics(tokenizer, 0.1)
    planned = plan_order(edits, model, tokenizer, by=by, step=12, seed=seed)
    chance = plan_order(edits, model, tokenizer, by="random", step=12, seed=seed)
    assert planned.within > chance.within + 0.2
    assert planned.between < chance.between
    assert planned.gap > chance.gap
    assert Counter(planned.permutation) == Counter(chance.permutation)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "size"}, "`by` must be one of none, kmeans, .*; got 'size'"),
        ({"step": 0, "by": "none"}, "`step` must be at least 1 for `by='none'`; got 0"),
        ({"step": 1}, "`step` must be at least 2 for `by='kmeans'`; got 1"),
    ],
)
def test_impossible_plans_are_told(tokenizer, alternating: list[Edit], settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        plan_order(alternating, edited(), tokenizer, **settings)


def test_there_must_be_edits(tokenizer):
    with pytest.raises(ValueError, match="the list is empty"):
        plan_order([], edited(), tokenizer)


@pytest.mark.parametrize("by", [*PLANNED, "random"])
def test_a_prompt_with_two_targets_is_not_reordered(tokenizer, by: OrderBy):
    edits = [Edit("The mayor is", "Anna"), Edit("The river is", "Wupp"), Edit("The mayor is ", "Tom")]
    with pytest.raises(ValueError, match="'The mayor is ' comes with the targets 'Anna' and 'Tom'"):
        plan_order(edits, edited(), tokenizer, by=by, step=2)
    assert plan_order(edits, edited(), tokenizer, by="none", step=2).permutation == [0, 1, 2]


def test_the_same_edit_twice_is_no_contradiction(tokenizer):
    edits = [Edit("The mayor is", "Anna"), Edit("The river is", "Wupp"), Edit("The mayor is", "Anna ")]
    assert plan_order(edits, edited(), tokenizer, step=2).permutation == [0, 2, 1]


def test_only_superposition_needs_an_adapter(tokenizer, alternating: list[Edit]):
    base = edited().get_base_model()
    assert plan_order(alternating, base, tokenizer, step=4).batches
    with pytest.raises(TypeError, match="got a LlamaForCausalLM without one"):
        plan_order(alternating, base, tokenizer, by="superposition", step=4)


def test_what_is_edited_already_changes_no_plan(tokenizer):
    edits, model = edits_of([0, 1, 2, 3] * 3), edited()
    before = [plan_order(edits, model, tokenizer, by=by, step=4) for by in PLANNED]
    put_edits(model, [*prompts_of(3), *(tokenizer(edit.prompt)["input_ids"] for edit in edits)])
    assert [plan_order(edits, model, tokenizer, by=by, step=4) for by in PLANNED] == before
