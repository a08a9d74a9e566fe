import pytest
import torch
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from facts import FACTS, editor_for, learner, plain, targets
from lemoe_hf import CommitCallback, EditCollator, EditTrainer, LifelongEditor
from tiny import adapter_state, assert_same, committed


@pytest.fixture
def arguments(tmp_path):
    def arguments(**overrides) -> TrainingArguments:
        settings = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "per_device_train_batch_size": 3,
            "num_train_epochs": 40,
            "learning_rate": 0.05,
            "lr_scheduler_type": "constant",
        }
        return TrainingArguments(**settings | overrides)

    return arguments


def model_for_training(**config):
    model = learner(expert_dim=8, **config)
    model.peft_config["default"].output_scale = 1.0
    return model


def first_words(editor, edits) -> list[str]:
    texts = editor.answers([edit.prompt for edit in edits], 10)
    return [text.strip()[: len(edit.target_new)] for text, edit in zip(texts, edits, strict=True)]


def rows(tokenizer, edits) -> list[dict]:
    """What any data set for `Trainer` holds: `input_ids` and `labels`, and nothing of ours."""
    batch = EditCollator(tokenizer)(edits)
    return [{name: batch[name][i] for name in ("input_ids", "attention_mask", "labels")} for i in range(len(edits))]


def test_the_collator(tokenizer):
    batch = EditCollator(tokenizer)(FACTS[:2])
    width = batch["input_ids"].shape[1]
    for row, fact in enumerate(FACTS[:2]):
        ids, mask, labels = (batch[name][row] for name in ("input_ids", "attention_mask", "labels"))
        assert tokenizer.decode(ids[mask.bool()]) == f"{fact.prompt} {fact.target_new}<eos>"
        assert tokenizer.decode(labels[labels != -100]) == f" {fact.target_new}<eos>"
        length = int(mask.sum())
        assert mask.tolist() == [1] * length + [0] * (width - length)
        assert torch.equal(labels[labels != -100], ids[labels != -100])


def test_a_plain_trainer_and_the_callback(tokenizer, arguments):
    model = model_for_training()
    base = model.state_dict()["base_model.model.lm_head.weight"].clone()
    trainer = Trainer(model, arguments(), train_dataset=rows(tokenizer, FACTS[:3]), callbacks=[CommitCallback()])
    trainer.train()
    editor = LifelongEditor(model.eval(), tokenizer)
    bank = model.base_model.layers_of()[0].lemoe_bank["default"]
    assert len(bank) == 1
    assert not any(weight.requires_grad for weight in bank.parameters())
    assert first_words(editor, FACTS[:3]) == targets(FACTS[:3])
    assert torch.equal(model.state_dict()["base_model.model.lm_head.weight"], base)
    # The prompts are in scope, and the ledger tells what was trained.
    assert [editor.explain(fact.prompt).expert for fact in FACTS[:3]] == [0, 0, 0]
    assert editor.explain(FACTS[4].prompt).deferred
    found = {(entry["edit"]["prompt"], entry["edit"]["target_new"]) for entry in editor.edits()}
    assert found == {(fact.prompt, fact.target_new) for fact in FACTS[:3]}
    assert {entry["expert"] for entry in editor.edits()} == {0}


def test_what_a_trainer_has_committed_never_changes(tokenizer, arguments):
    model = model_for_training()
    EditTrainer(model, arguments(), train_dataset=FACTS[:3], processing_class=tokenizer).train()
    stored = committed(model)
    editor = LifelongEditor(model.eval(), tokenizer)
    editor.edit(FACTS[3])
    EditTrainer(model, arguments(weight_decay=0.5), train_dataset=FACTS[4:], processing_class=tokenizer).train()
    model.eval()
    now = committed(model)
    assert_same({name: now[name][: len(tensor)] for name, tensor in stored.items()}, stored)
    assert first_words(editor, FACTS) == targets(FACTS)
    assert [editor.explain(fact.prompt).expert for fact in FACTS] == [0, 0, 0, 1, 2, 2]


def test_edit_trainer_takes_edits(tokenizer, arguments):
    model = model_for_training()
    trainer = EditTrainer(model, arguments(), train_dataset=FACTS[:3], processing_class=tokenizer)
    trainer.train()
    editor = LifelongEditor(model.eval(), tokenizer)
    assert first_words(editor, FACTS[:3]) == targets(FACTS[:3])
    assert not model.base_model.has_open_edits()
    assert model.peft_config["default"].num_experts == 1


def test_edit_trainer_keeps_the_callbacks_and_the_collator_it_is_given(tokenizer, arguments):
    calls = []

    class Watch(CommitCallback):
        def on_step_end(self, args, state, control, **kwargs):
            calls.append(state.global_step)

    def collate(edits):
        calls.append("collated")
        return EditCollator(tokenizer)(edits)

    trainer = EditTrainer(
        model_for_training(),
        arguments(max_steps=2),
        train_dataset=FACTS[:3],
        processing_class=tokenizer,
        callbacks=[Watch()],
        data_collator=collate,
    )
    trainer.train()
    assert 2 in calls
    assert "collated" in calls


def test_training_that_saw_nothing_commits_nothing(tokenizer, arguments):
    model = model_for_training()
    CommitCallback().on_train_end(None, None, None, model=model)
    assert len(model.base_model.layers_of()[0].lemoe_bank["default"]) == 0


def test_evaluation_within_training_leaves_no_anchors(tokenizer, arguments):
    model = model_for_training()
    trainer = EditTrainer(
        model,
        arguments(num_train_epochs=2, eval_strategy="epoch"),
        train_dataset=FACTS[:2],
        eval_dataset=FACTS[2:4],
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(LifelongEditor(model.eval(), tokenizer).edits()) == 2


@pytest.mark.parametrize("accumulation", [1, 3])
def test_gradient_accumulation(tokenizer, arguments, accumulation):
    model = model_for_training()
    settings = arguments(per_device_train_batch_size=1, gradient_accumulation_steps=accumulation)
    EditTrainer(model, settings, train_dataset=FACTS[:3], processing_class=tokenizer).train()
    editor = LifelongEditor(model.eval(), tokenizer)
    assert first_words(editor, FACTS[:3]) == targets(FACTS[:3])


@pytest.mark.parametrize("routing", ["nearest_anchor", "kv_anchor"])
@pytest.mark.parametrize("edited_before", [0, 2])
def test_a_checkpoint_reloads_and_training_resumes(tokenizer, arguments, tmp_path, edited_before, routing):
    """Straight through, and from a checkpoint in a new model that has no experts yet: the same adapter."""

    def trainer(model, **overrides):
        settings = arguments(save_strategy="steps", save_steps=10, max_steps=20, **overrides)
        return EditTrainer(model, settings, train_dataset=FACTS[:3], processing_class=tokenizer)

    def start():
        model = model_for_training(routing=routing)
        if edited_before:
            LifelongEditor(model, tokenizer).edit(FACTS[4 : 4 + edited_before])
        return model

    straight = start()
    trainer(straight).train()
    checkpoint = tmp_path / "run" / "checkpoint-10"

    loaded = PeftModel.from_pretrained(learner().unload(), checkpoint)
    assert loaded.base_model.has_open_edits()
    assert len(LifelongEditor(loaded, tokenizer).edits()) == edited_before + 3

    resumed = model_for_training(routing=routing)  # smaller: without the edits, without anchors
    trainer(resumed).train(resume_from_checkpoint=str(checkpoint))
    state, expected = adapter_state(resumed), adapter_state(straight)
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(state[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    assert LifelongEditor(resumed, tokenizer).edits() == LifelongEditor(straight, tokenizer).edits()
    assert len(resumed.base_model.layers_of()[0].lemoe_bank["default"]) == edited_before + 1


def test_the_last_checkpoint_of_a_finished_run_reloads(tokenizer, arguments, tmp_path):
    model = model_for_training()
    trainer = EditTrainer(model, arguments(), train_dataset=FACTS[:3], processing_class=tokenizer)
    trainer.train()
    trainer.save_model(tmp_path / "done")
    loaded = PeftModel.from_pretrained(learner().unload(), tmp_path / "done")
    assert_same(adapter_state(loaded), adapter_state(model))
    assert first_words(LifelongEditor(loaded, tokenizer), FACTS[:3]) == targets(FACTS[:3])


def test_a_bare_training_loop(tokenizer, tmp_path):
    model = model_for_training().train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.05)
    batch = EditCollator(tokenizer)(FACTS[:3])
    for _ in range(80):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss < 0.1
    model.eval()
    editor = LifelongEditor(model, tokenizer)
    assert first_words(editor, FACTS[:3]) == targets(FACTS[:3])
    before = [model(**tokenizer(fact.prompt, return_tensors="pt")).logits for fact in FACTS[:3]]
    model.base_model.commit()
    after = [model(**tokenizer(fact.prompt, return_tensors="pt")).logits for fact in FACTS[:3]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    model.save_pretrained(tmp_path)
    loaded = LifelongEditor(PeftModel.from_pretrained(learner().unload(), tmp_path), tokenizer)
    assert first_words(loaded, FACTS[:3]) == targets(FACTS[:3])
    with pytest.raises(ValueError, match="nothing to commit: the open expert of 'default' holds no edits"):
        model.base_model.commit()


def test_a_prompt_trained_again_is_one_edit(tokenizer):
    model = model_for_training().train()
    batch = EditCollator(tokenizer)([FACTS[0], FACTS[0], FACTS[1]])
    for _ in range(3):
        model(**batch).loss.backward()
    assert [entry["id"] for entry in LifelongEditor(model, tokenizer).edits()] == [0, 1]


def test_what_a_loop_has_learned_is_not_rescaled_by_an_editor(tokenizer):
    """An editor measures the unit of experts; those that are there were made without it."""
    model = learner()
    assert model.peft_config["default"].output_scale is None
    batch = EditCollator(tokenizer)(FACTS[:2])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.base_model.commit()
    model.eval()
    with torch.no_grad():
        before = model(**batch).logits
    editor = LifelongEditor(model, tokenizer, plain())
    result = editor.edit(FACTS[3])
    scale = model.peft_config["default"].output_scale
    assert scale != 1.0
    assert result.after == [FACTS[3].target_new]
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)


def test_other_processes_are_told_of_trained_prompts_only(tokenizer):
    """An editor's edits in the open expert have anchors already, in every process."""
    editor = editor_for(tokenizer, edits_per_expert=3, expert_dim=16)
    editor.edit(FACTS[0])
    before = editor.edits()
    CommitCallback()._gather(editor.tuner)
    assert editor.edits() == before
