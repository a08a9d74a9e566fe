"""Edits in an ELDER adapter: batches, guidance, codes, thresholds, undo, and training loops."""

import warnings

import pytest
import torch
from peft import get_peft_model
from transformers import TrainingArguments

from facts import FACTS, UNRELATED, plain
from lemoe_hf import Edit, EditingArguments, EditingError, EditTrainer, ELDERConfig, LifelongEditor
from tiny import assert_same, byte_tokenizer, logits, tiny


SMALL = {"num_layers": 2, "depth": 0.5, "relation_gate": False}
HAMMING = SMALL | {"deferral_by": "hamming", "deferral_threshold": 2}


def editor_of(arguments=None, **config):
    model = get_peft_model(tiny(), ELDERConfig(**(SMALL | config))).eval()
    return LifelongEditor(model, byte_tokenizer(), arguments or plain(max_steps=25, batch_size=4))


def codes_of(editor):
    return editor.tuner.layers_of()[0].codes(editor.adapter_name)


def state(editor):
    return {key: value.clone() for key, value in editor.model.state_dict().items() if "elder_" in key}


def test_edits_of_one_target_share_their_allocation():
    editor = editor_of()
    editor.edit(FACTS[:2])
    editor.edit([Edit("Where do people drive on the left?", FACTS[0].target_new), FACTS[2]])
    allocated = codes_of(editor).allocated
    assert torch.equal(allocated[0], allocated[2])
    assert len({tuple(row) for row in allocated.tolist()}) == 3
    assert allocated.shape == (4, 2 * 2)


def test_more_targets_than_allocations_are_refused_and_leave_no_trace():
    editor = editor_of(num_experts=2, top_k=1, num_layers=1)
    editor.prepare()
    before = state(editor)
    with pytest.raises(ValueError, match="All 2 allocations"):
        editor.edit(FACTS[:3])
    assert_same(state(editor), before)
    editor.edit(FACTS[:2])


def test_the_guided_loss_brings_codes_to_their_allocation():
    distance = {}
    for guide in (0.0, 1.0):
        editor = editor_of(plain(max_steps=40, batch_size=4, stop_loss=0.0), guide_lambda=guide, **HAMMING)
        editor.edit(FACTS[:4])
        codes = codes_of(editor)
        allocated = torch.zeros(4, 2, 4).scatter(-1, codes.allocated.view(4, 2, 2).long(), 1.0)
        distance[guide] = (allocated.flatten(1) != codes.codes).float().sum(1).mean().item()
    assert distance[1.0] == 0
    assert distance[0.0] > 1


def test_codes_are_refreshed_or_stay_as_they_were():
    for refreshes in (True, False):
        editor = editor_of(plain(max_steps=40, batch_size=4), refresh_codes=refreshes, guide_lambda=1.0, **HAMMING)
        editor.edit(FACTS[:4])
        before = codes_of(editor).codes.clone()
        for layer in editor.tuner.layers_of():  # as far as later edits may move it
            layer.elder_mixture["default"].router.data.neg_()
        editor.edit(FACTS[4])
        moved = not torch.equal(codes_of(editor).codes[:4], before)
        assert moved is refreshes
        editor.tuner.refresh_codes()
        queries, lead = codes_of(editor).queries, editor.tuner.layers_of()[0]
        assert lead.distance("default", queries).max() == 0


def test_a_threshold_is_calibrated_on_unrelated_prompts():
    editor = editor_of(guide_lambda=1.0, **HAMMING | {"deferral_threshold": "calibrate"}, false_accept_rate=0.5)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        editor.edit(FACTS[:4])
    lead, unrelated = editor.tuner.layers_of()[0], editor._procedure.unrelated
    share = [(lead.distance("default", unrelated) < each).float().mean().item() for each in (2, 4, 6, 8)]
    fitting = [each for each, rate in zip((2, 4, 6, 8), share, strict=True) if rate <= 0.5]
    assert editor.config.threshold_in_use == max(fitting, default=2)
    assert any("No Hamming threshold is selective" in str(each.message) for each in told) is not bool(fitting)


def test_where_no_threshold_is_selective_that_is_said():
    editor = editor_of(**HAMMING | {"deferral_threshold": "calibrate"}, false_accept_rate=0.0, num_experts=2, top_k=2)
    with pytest.warns(UserWarning, match="No Hamming threshold is selective"):  # there is one code only
        editor.edit(FACTS[0])
    assert editor.config.threshold_in_use == 2


def test_undo_gives_a_named_prompt_back_and_is_refused_where_codes_decide():
    editor = editor_of()
    editor.edit(FACTS[:4])
    ids = [editor.tokenizer(fact.prompt)["input_ids"] for fact in FACTS[:4]]
    before = [logits(editor.model, each) for each in ids]
    editor.undo(1)
    assert torch.equal(logits(editor.model, ids[1]), logits(tiny(), ids[1]))
    for i in (0, 2, 3):
        assert torch.equal(logits(editor.model, ids[i]), before[i])
    editor.edit(FACTS[1])
    by_codes = editor_of(**HAMMING)
    by_codes.edit(FACTS[:2])
    with pytest.raises(ValueError, match="none can be taken out"):
        by_codes.undo(0)


def test_training_that_breaks_down_leaves_no_trace():
    editor = editor_of(plain(learning_rate=1e38, batch_size=4))
    editor.prepare()
    before = state(editor)
    with pytest.raises(EditingError, match="Nothing of this batch was kept"):
        editor.edit(FACTS[:4])
    assert_same(state(editor), before)
    assert editor.edits() == []


def test_replay_keeps_earlier_edits():
    losses = {}
    for replay in (0, 8):
        arguments = EditingArguments(learning_rate=0.05, betas=(0.9, 0.999), max_steps=25, batch_size=2, contexts=())
        arguments.replay = replay
        editor = editor_of(arguments, r=2)
        editor.edit(FACTS)
        procedure = editor._procedure
        group = next(iter(procedure.plan(FACTS, procedure.tokenized(FACTS))))
        arguments.max_steps, arguments.replay = 1, 0
        losses[replay] = sum(procedure.train(group).losses)
    assert losses[8] < losses[0]


@pytest.mark.parametrize("config", [SMALL, HAMMING, HAMMING | {"acts_from": "start", "allocation": "hard"}], ids=str)
def test_trainer(tmp_path, config):
    editor = editor_of(guide_lambda=1.0, **config)
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=100, learning_rate=2e-2, report_to="none", use_cpu=True, save_strategy="no"
    )
    EditTrainer(editor.model, arguments, train_dataset=FACTS[:4], processing_class=editor.tokenizer).train()
    editor.model.eval()
    assert len(codes_of(editor)) == len(editor.edits()) == 4
    answers = [text.strip() for text in editor.answers([fact.prompt for fact in FACTS[:4]], 10)]
    assert answers == [fact.target_new for fact in FACTS[:4]]
    if config is SMALL:
        for prompt in UNRELATED:
            ids = editor.tokenizer(prompt)["input_ids"]
            assert torch.equal(logits(editor.model, ids), logits(tiny(), ids))
