from lemoe_hf.editing.samples import Sample
from lemoe_hf.editing.trunk import Trunk
from tiny import PAD, edited


def test_the_rows_of_a_batch_are_its_samples():
    """Texts of one surrounding go together, short ones first; an edit may have fewer of them than others."""
    tuner = edited().base_model
    own = [Sample(list(range(20, 30 + 3 * i)), [40 + i, 1], 3, expert=i) for i in (2, 0, 1)]
    chat = [Sample([50, 51, 52, 53], [60 + i], 2, expert=i, own=False) for i in (2, 1)]
    batch, rows = Trunk(tuner.model, tuner.context, PAD).run([[own[0], chat[0]], [own[1]], [own[2], chat[1]]])
    assert rows == [own[1], own[2], own[0], *chat]
    assert batch.expert.tolist() == [0, 1, 2, 2, 1]
    assert batch.own.tolist() == [True, True, True, False, False]
    assert [batch.labels[i][batch.is_target[i]].tolist() for i in range(5)] == [sample.target for sample in rows]
