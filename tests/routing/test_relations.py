"""Relations as a learned metric, on made-up features of which the nuisance is known."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lemoe_hf.routing.relations import (
    TURNED_AWAY,
    WORDS,
    LabelledPrompts,
    Relations,
    features_of,
    words_of,
)


WIDTH, PROMPTS, KINDS = 40, 12, 3


def synthetic(relations: range, seed: int = 0) -> LabelledPrompts:
    """
    Prompts of relations that differ in ten directions by one, and of subjects that differ in four others by four.

    Relations of one kind of subject are somewhat alike; every second prompt is a question.
    """
    generator = torch.Generator().manual_seed(100 + seed)
    relation = torch.tensor(relations).repeat_interleave(PROMPTS)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))[0]
    meanings = torch.randn(1000, 10, generator=torch.Generator().manual_seed(2))
    kinds = 0.7 * torch.randn(KINDS, 10, generator=torch.Generator().manual_seed(3))
    kind = relation % KINDS
    features = (meanings[relation] + kinds[kind]) @ basis[:, :10].T
    features = features + 4 * torch.randn(len(relation), 4, generator=generator) @ basis[:, 10:14].T
    features = features + 0.3 * torch.randn(len(relation), WIDTH, generator=generator)
    return LabelledPrompts(features, relation, kind, torch.arange(len(relation)) % 2 == 0)


def fitted(relations: range = range(60), **options) -> Relations:
    learned = Relations()
    learned.fit(synthetic(relations), **options)
    return learned


def separation(score: torch.Tensor, prompts: LabelledPrompts) -> float:
    """How often two prompts of one relation score higher than two of different relations of one kind."""
    same = prompts.relation[:, None] == prompts.relation
    alike, others = score[same.triu(1)], score[(~same & (prompts.kind[:, None] == prompts.kind)).triu(1)]
    return float((alike[:, None] > others).float().mean())


def unit(*values: float) -> torch.Tensor:
    return F.pad(torch.tensor(values), (0, Relations.num_directions - len(values)))


# ------------------------------------------------------------------------------------------------------------- learning


def test_relations_that_were_never_seen_are_told_apart():
    tested, learned = synthetic(range(60, 80), seed=1), fitted()
    raw = F.normalize(tested.features - tested.features.mean(0), dim=-1)
    assert separation(raw @ raw.T, tested) < 0.65
    embedded = learned.embed(tested.features)
    assert separation(learned.score(embedded, embedded), tested) > 0.97


@pytest.mark.parametrize("is_question", [True, False])
def test_the_threshold_turns_away_its_share_of_questions_that_were_never_seen(is_question):
    """Of those to the same kind of subject, which are more alike than others; and statements have the same threshold."""
    tested, learned = synthetic(range(60, 180), seed=1), fitted(range(60), num_prompts=300)
    embedded = learned.embed(tested.features)
    score = learned.score(embedded, embedded)[tested.is_question == is_question]
    rows = tested[tested.is_question == is_question]
    others = (rows.kind[:, None] == tested.kind) & (rows.relation[:, None] != tested.relation)
    assert learned.thresholds[0] == learned.thresholds[1]
    turned_away = (score[others] < learned.thresholds[0]).float().mean()
    assert turned_away == pytest.approx(TURNED_AWAY, abs=0.05)


def test_without_any_question_nothing_is_turned_away():
    prompts = synthetic(range(30))
    learned = Relations()
    learned.fit(prompts[~prompts.is_question])
    assert (learned.thresholds == -torch.inf).all()


def test_learning_draws_nothing_from_the_global_random_state():
    torch.manual_seed(0)
    state, one = torch.get_rng_state(), fitted()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    for name, tensor in fitted().named_buffers():
        assert torch.equal(tensor, getattr(one, name)), name


def test_what_is_kept_of_learning():
    empty, learned = Relations(), fitted(num_prompts=50)
    assert not empty.is_fitted
    assert learned.is_fitted
    assert learned.directions.shape == (WIDTH, 48)
    assert learned.cohort.shape == (50, 48)
    assert len(fitted(range(10)).cohort) == 10 * PROMPTS
    few = fitted(range(10)).directions.float().norm(dim=0)  # of ten relations nine directions tell
    assert (few > 1e-3)[:9].all()


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
    relations, features = fitted(), synthetic(range(60, 62)).features
    for cut in (1, 25):
        parts = relations.project(features[:, :cut]) + relations.project(features[:, cut:], cut)
        torch.testing.assert_close(parts, relations.project(features), rtol=1e-4, atol=1e-4)


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
    left = relations.embed(synthetic(range(2), 1).features)
    right = relations.embed(synthetic(range(2), 2).features)[:5]
    score = relations.score(left, right)
    assert score.shape == (24, 5)
    torch.testing.assert_close(score, relations.score(right, left).T)
    torch.testing.assert_close(score[3:4, 1:2], relations.score(left[3:4], right[1:2]))


def test_pairs_have_the_scores_of_each_key_against_each_prompt():
    relations = fitted()
    keys = relations.embed(synthetic(range(2), 1).features)
    asked = relations.embed(synthetic(range(2), 2).features)[:5]
    pair = torch.tensor([4, 0, 0, 2, 1, 3] * 4)
    expected = relations.score(keys, asked)[torch.arange(24), pair]
    torch.testing.assert_close(relations.score_pairs(keys, asked, pair), expected)


# ----------------------------------------------------------------------------------------------------------------- keys


def with_keys() -> Relations:
    relations = fitted(range(10))
    relations.thresholds.fill_(1.5)
    embedded = relations.embed(synthetic(range(1)).features)
    relations.add([2, 3, 7], embedded[:3])
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
