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
    mean_of_sentences,
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
def test_thresholds_turn_away_their_share_of_relations_that_were_never_seen(is_question):
    """Of prompts to the same kind of subject, which are more alike than others."""
    tested, learned = synthetic(range(60, 180), seed=1), fitted(range(60), num_prompts=300)
    embedded = learned.embed(tested.features)
    score = learned.score(embedded, embedded)[tested.is_question == is_question]
    rows = tested[tested.is_question == is_question]
    others = (rows.kind[:, None] == tested.kind) & (rows.relation[:, None] != tested.relation)
    turned_away = (score[others] < learned.thresholds[0 if is_question else 1]).float().mean()
    assert turned_away == pytest.approx(TURNED_AWAY[0 if is_question else 1], abs=0.05)


def test_without_any_statement_nothing_is_turned_away_from_one():
    prompts = synthetic(range(30))
    learned = Relations()
    learned.fit(prompts[prompts.is_question])
    assert learned.thresholds[0].isfinite()
    assert learned.thresholds[1] == -torch.inf


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


# A name of two tokens in columns 2 and 3; a stop in column 5.
SENTENCES = {
    "up to the column": (4, [0, 1, 4]),
    "up to the stop that ends it": (5, [0, 1, 4, 5]),
    "of a later sentence alone": (7, [6, 7]),
    "the name alone": (3, [0, 1]),
}


@pytest.mark.parametrize(("column", "counted"), SENTENCES.values(), ids=SENTENCES)
@pytest.mark.parametrize("padding", [0, 3])
def test_a_mean_is_over_the_sentences_words_without_the_name(column, counted, padding):
    """Wherever there is padding, and beside a prompt without any stop."""
    values = torch.randn(2, 8 + padding, 4, generator=torch.Generator().manual_seed(0))
    is_text = torch.arange(8 + padding) >= padding
    is_stop = torch.stack([torch.arange(8 + padding) == 5 + padding, torch.zeros(8 + padding) > 0])
    first, last = torch.full((2, 1), 2 + padding), torch.full((2, 1), 3 + padding)
    columns = torch.full((2, 1, 1), column + padding)
    mean = mean_of_sentences(values, is_text.expand(2, -1), is_stop, first, last, columns)
    rows = torch.tensor(counted) + padding
    torch.testing.assert_close(mean[0, 0, 0], values[0, rows].mean(0))
    rows = torch.tensor([i for i in range(column + 1) if i not in (2, 3)]) + padding
    torch.testing.assert_close(mean[1, 0, 0], values[1, rows].mean(0))


def test_a_stop_within_a_name_ends_no_sentence():
    """As in J. Doe; and a name that is the whole sentence leaves nothing."""
    values = torch.arange(1.0, 7.0)[None, :, None]
    is_stop = torch.tensor([[True, False, True, False, False, False]])
    text = torch.ones(1, 6, dtype=torch.bool)
    first, last, columns = torch.tensor([[2, 1]]), torch.tensor([[3, 3]]), torch.tensor([[[4, 5], [3, 4]]])
    mean = mean_of_sentences(values, text, is_stop, first, last, columns)
    expected = torch.tensor([[[(2 + 5) / 2, (2 + 5 + 6) / 3], [0.0, 5.0]]])
    torch.testing.assert_close(mean[..., 0], expected)


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
    left, right = (
        relations.embed(synthetic(range(2), seed).features).unflatten(0, (4, 6))[..., :rows, :]
        for seed, rows in ((1, 6), (2, 5))
    )
    score = relations.score(left, right)
    assert score.shape == (4, 6, 5)
    torch.testing.assert_close(score, relations.score(right, left).transpose(1, 2))
    torch.testing.assert_close(score[2, 3:4, 1:2], relations.score(left[2, 3:4], right[2, 1:2]))


# ----------------------------------------------------------------------------------------------------------------- keys


def with_keys() -> Relations:
    relations = fitted(range(10))
    relations.thresholds = torch.tensor([1.5, -0.5])
    embedded = relations.embed(synthetic(range(1)).features)
    relations.add([2, 3, 7], embedded[:3], torch.tensor([True, False, True]))
    return relations


def test_keys_are_appended_with_the_threshold_of_their_kind_of_prompt():
    relations = with_keys()
    before = relations.keys.clone()
    relations.thresholds.fill_(9.0)
    relations.add([8], -before[:1].float(), torch.tensor([False]))
    assert len(relations) == 4
    assert relations.edit.tolist() == [2, 3, 7, 8]
    assert relations.threshold.tolist() == [1.5, -0.5, 1.5, 9.0]
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
