"""Which words tell relations apart is learned from wordings, here made-up ones of which it is known what tells."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lemoe_hf.editing import wordings as learning
from lemoe_hf.editing.wordings import TURNED_AWAY, Wordings, fit, of_others
from lemoe_hf.routing.relations import Relations


WIDTH, WORDINGS, KINDS, FILLERS = 32, 8, 3, 40
# Words of one meaning are alike but for noise; those without any stand in every wording.
MEANINGS, SYNONYMS = 120, 4


def table() -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    meanings = torch.randn(MEANINGS, 1, 8, generator=draw).repeat(1, SYNONYMS, 1)
    noise = torch.randn(MEANINGS * SYNONYMS, WIDTH, generator=draw)
    words = 0.5 * noise + F.pad(1.5 * meanings.flatten(0, 1), (0, WIDTH - 8))
    fillers = F.pad(2 * torch.randn(FILLERS, WIDTH - 8, generator=draw), (8, 0))
    return torch.cat([words, fillers])


def made_up(relations: range, seed: int = 0) -> Wordings:
    """Each relation has a word of its own meaning, and five that mean nothing."""
    draw = torch.Generator().manual_seed(seed)
    words = [
        [relation * SYNONYMS + int(torch.randint(SYNONYMS, (), generator=draw))]
        + (MEANINGS * SYNONYMS + torch.randint(FILLERS, (5,), generator=draw)).tolist()
        for relation in relations
        for _ in range(WORDINGS)
    ]
    relation = [relation for relation in relations for _ in range(WORDINGS)]
    kind = [each % KINDS for each in relation]
    return Wordings.of(words, lambda ids: table()[ids], relation, kind, [i % 2 == 0 for i in range(len(words))])


@pytest.fixture(scope="module")
def fitted() -> Relations:
    relations = Relations()
    fit(relations, made_up(range(90)), steps=120)
    return relations


def separation(score: torch.Tensor, wordings: Wordings) -> float:
    """How often two wordings of one relation score higher than two of different relations of one kind."""
    same = wordings.relation[:, None] == wordings.relation
    alike, others = score[same.triu(1)], score[(~same & (wordings.kind[:, None] == wordings.kind)).triu(1)]
    return float((alike[:, None] > others).float().mean())


def test_relations_that_were_never_seen_are_told_apart(fitted):
    tested = made_up(range(90, 120), seed=1)
    raw = F.normalize(tested.counts @ tested.embedded, dim=-1)
    found = fitted.embed_words(tested.embedded, tested.counts)
    assert separation(raw @ raw.T, tested) < 0.75
    assert separation(fitted.score(found, found), tested) > 0.9


def test_words_that_tell_nothing_count_less(fitted):
    emphasis = F.rms_norm(table(), (WIDTH,)) @ fitted.emphasis
    assert emphasis[:-FILLERS].mean() > emphasis[-FILLERS:].mean() + 0.02


def test_the_thresholds_turn_away_their_shares_of_relations_that_were_never_seen(fitted):
    assert fitted.thresholds[0] > fitted.thresholds[1]
    found = of_others(fitted, made_up(range(90, 120), seed=1))
    for share, score, threshold in zip(TURNED_AWAY, found, fitted.thresholds, strict=True):
        assert (score < threshold).float().mean() == pytest.approx(share, abs=0.04)


def test_where_nothing_is_near_nothing_is_turned_away():
    relations, few = Relations(), made_up(range(3))
    fit(relations, replace(few, kind=few.relation), steps=2)
    assert (relations.thresholds == -torch.inf).all()
    assert relations.allowance == 0


def test_learning_draws_nothing_from_the_global_random_state():
    outcomes = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state, relations = torch.get_rng_state(), Relations()
        fit(relations, made_up(range(12)), steps=4)
        assert torch.equal(torch.get_rng_state(), state)
        outcomes.append(dict(relations.named_buffers()))
    for name, tensor in outcomes[0].items():
        assert torch.equal(tensor, outcomes[1][name]), name


def test_the_loss_is_of_each_wording_against_all_others():
    found = F.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    relation = torch.tensor([4, 4, 4, 7, 9])  # the last two have none that asks for the same
    expected = []
    for i in range(3):
        logits = torch.stack([5 * found[i] @ found[j] for j in range(5) if j != i])
        expected += [-logits.log_softmax(0)[[0, 1]].mean()]
    loss = learning.contrastive(found, relation, torch.tensor(5.0))
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_a_step_holds_near_relations_and_several_wordings_of_each():
    wordings = made_up(range(120))
    batches = learning.Batches(wordings, torch.Generator().manual_seed(0))
    for _ in range(3):
        rows = batches.next()
        assert len(set(rows.tolist())) == len(rows) == learning.RELATIONS * WORDINGS
        count = torch.bincount(wordings.kind[rows])
        assert max(count) >= learning.RELATIONS // 3 * WORDINGS
