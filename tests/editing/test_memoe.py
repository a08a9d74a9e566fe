"""Edits in a MEMoE adapter: all of a call together, made, found again, taken back, saved and trained by a loop."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import TrainingArguments

from facts import FACTS, UNRELATED, learner, plain, targets
from lemoe_hf import Edit, EditingArguments, EditingError, EditTrainer, LifelongEditor, MEMoEConfig
from lemoe_hf.editing import memoe
from lemoe_hf.editing.activations import CachedBatch
from mixtures import gated
from tiny import tiny


def editor_for(tokenizer, arguments: EditingArguments | None = None, **config) -> LifelongEditor:
    settings = {"relation_gate": False, "expert_dim": 32, **config}
    base = learner().unload()
    model = get_peft_model(base, MEMoEConfig(**settings)).eval()
    return LifelongEditor(model, tokenizer, arguments or plain(learning_rate=0.02, betas=(0.9, 0.99), max_steps=300))


def answers(editor, edits) -> list[str]:
    return [text.strip() for text in editor.answers([edit.prompt for edit in edits], 10)]


def logits_of(editor, prompts) -> list[torch.Tensor]:
    with torch.no_grad():
        return [editor.model(**editor.tokenizer(prompt, return_tensors="pt")).logits for prompt in prompts]


def all_equal(left, right) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def mixture_of(editor) -> dict[str, torch.Tensor]:
    state = editor.model.state_dict()
    return {name: tensor.clone() for name, tensor in state.items() if "memoe_mixture" in name or "memoe_gate" in name}


# ------------------------------------------------------------------------------------------------------------- editing


@pytest.mark.parametrize(
    "config",
    [{}, {"expert": "lora"}, {"top_k": 2}, {"num_experts": 1}, {"use_anchor": False}, {"layers_to_transform": [1, 3]}],
    ids=str,
)
def test_a_batch_is_answered_and_everything_else_is_the_base_model(tokenizer, config):
    editor = editor_for(tokenizer, **config)
    base = logits_of(editor, UNRELATED)
    result = editor.edit(FACTS)
    assert answers(editor, FACTS) == targets(FACTS)
    assert [editor.explain(fact.prompt).entry["id"] for fact in FACTS] == result.ids == list(range(6))
    assert all_equal(logits_of(editor, UNRELATED), base)
    assert {record["expert"] for record in result.records} == {0}
    assert all(record["loss"] <= 0.05 for record in result.records)


def test_other_wordings_about_the_subject_are_answered_and_the_gate_reads_the_same_anchor(tokenizer):
    editor = editor_for(tokenizer, plain(learning_rate=0.02, betas=(0.9, 0.99)))
    editor.edit(FACTS)
    subject = tokenizer(" Zembla", add_special_tokens=False)["input_ids"]
    expected = editor.root.get_input_embeddings()(torch.tensor(subject)).mean(0)
    for prompt in ("The capital of Zembla is", "What do they call the capital of Zembla?"):
        with gated(editor.model) as seen:
            logits_of(editor, [prompt])
        torch.testing.assert_close(seen[-1][0].anchors[0], expected)


def test_texts_are_trained_with_the_anchor_that_they_are_found_by(tokenizer, monkeypatch):
    """In an edit's prompt, in other surroundings, with a subject and without one."""
    trained = {}
    plain_training = memoe.train_mixture

    def watched(tuner, name, batch, arguments):
        trained["anchors"], trained["expert"] = batch.anchors, batch.expert
        return plain_training(tuner, name, batch, arguments)

    monkeypatch.setattr(memoe, "train_mixture", watched)
    edits = [*FACTS[:3], Edit("What is the colour of the old Silver Lake bridge?", "red"), Edit("who is it", "Anna")]
    editor = editor_for(tokenizer, EditingArguments(contexts=("{subject} is",), max_steps=2, learning_rate=0.01))
    editor.edit(edits)
    prompts = [edit.prompt for edit in edits]
    for i, prompt in enumerate(prompts):
        with gated(editor.model) as seen:
            logits_of(editor, [prompt])
        own = trained["anchors"][trained["expert"] == i]
        torch.testing.assert_close(seen[-1][0].anchors[0], own[0])


def test_the_published_setting_edits_and_acts_on_every_text(tokenizer):
    config = {name: getattr(MEMoEConfig.paper(), name) for name in ("normalize", "deferral", "depth")}
    settings = plain(learning_rate=5e-3, relative=False, betas=(0.9, 0.999), max_steps=100)
    editor = editor_for(tokenizer, settings, **config)
    base = logits_of(editor, UNRELATED)
    editor.edit(FACTS[:3])
    assert answers(editor, FACTS[:3]) == targets(FACTS[:3])
    assert not any(torch.equal(one, other) for one, other in zip(logits_of(editor, UNRELATED), base, strict=True))
    with pytest.raises(ValueError, match="`deferral=False`"):
        editor.undo(0)
    assert editor.explain(FACTS[0].prompt).expert == 0


def test_the_published_setting_has_published_arguments(tokenizer):
    editor = LifelongEditor(get_peft_model(tiny(), MEMoEConfig.paper()), tokenizer)
    assert (editor.arguments.learning_rate, editor.arguments.relative, editor.arguments.contexts) == (2e-4, False, ())


def test_nothing_is_frozen_and_replay_keeps_what_was_learned(tokenizer):
    kept = {}
    for replay in (0, 10):
        editor = editor_for(tokenizer, replay=replay)
        for fact in FACTS:
            before = mixture_of(editor)
            editor.edit(fact)
            assert not all_equal(before.values(), mixture_of(editor).values())
        kept[replay] = sum(a == b for a, b in zip(answers(editor, FACTS), targets(FACTS), strict=True))
    assert kept[10] == 6 > kept[0]


def test_a_prompt_that_is_edited_again_has_one_edit(tokenizer):
    """The mixture has the new answer in the place of the old one: there is no way back to that."""
    editor = editor_for(tokenizer)
    base = logits_of(editor, [FACTS[0].prompt])
    editor.edit(FACTS[:2])
    editor.edit(Edit(FACTS[0].prompt, "Peru", subject=FACTS[0].subject))
    assert answers(editor, FACTS[:1]) == ["Peru"]
    assert [entry["id"] for entry in editor.edits()] == [1, 2]
    editor.undo(2)
    assert all_equal(logits_of(editor, [FACTS[0].prompt]), base)


def test_undo_gives_prompts_back_and_changes_nothing_else(tokenizer):
    editor = editor_for(tokenizer)
    asked = [FACTS[2].prompt, "Tell me: who leads the Quorvex Institute?"]
    base = logits_of(editor, asked)
    editor.edit(FACTS)
    others = [fact.prompt for fact in FACTS if fact is not FACTS[2]]
    before, weights = logits_of(editor, others), mixture_of(editor)
    assert editor.undo(2)["edit"]["target_new"] == "Mira"
    assert all_equal(logits_of(editor, asked), base)
    assert all_equal(logits_of(editor, others), before)
    assert all_equal(mixture_of(editor).values(), weights.values())
    with pytest.raises(KeyError, match="There is no edit 2"):
        editor.undo(2)


def test_what_breaks_down_leaves_everything_as_it_was(tokenizer, monkeypatch):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    before, said, weights = editor.edits(), logits_of(editor, [FACTS[0].prompt, FACTS[3].prompt]), mixture_of(editor)
    steps = []

    def broken(self, logits):
        steps.append(1)
        return (
            torch.full_like(self.start, torch.nan if len(steps) > 2 else 1.0, dtype=torch.float32) + 0 * logits.sum()
        )

    monkeypatch.setattr(CachedBatch, "losses", broken)
    with pytest.raises(
        EditingError, match=r"The loss became nan in pass \d+. Nothing of this batch was kept.*Quorvex"
    ):
        editor.edit(FACTS[2:])
    monkeypatch.undo()
    assert editor.edits() == before
    assert all_equal(mixture_of(editor).values(), weights.values())
    assert all_equal(logits_of(editor, [FACTS[0].prompt, FACTS[3].prompt]), said)


def test_the_same_edits_give_the_same_weights(tokenizer):
    first, second = (editor_for(tokenizer, router_noise=None) for _ in range(2))
    first.edit(FACTS)
    torch.manual_seed(7)
    second.edit(FACTS)
    assert all_equal(mixture_of(first).values(), mixture_of(second).values())


# ------------------------------------------------------------------------------------------------------- saved, trained


AGAIN = """
import json, sys, torch
import lemoe_hf
from peft import PeftModel
from transformers import AutoModelForCausalLM
folder, prompts = sys.argv[1], json.loads(sys.argv[2])
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder + "/base", dtype=torch.float32), folder).eval()
with torch.no_grad():
    torch.save([model(torch.tensor([ids])).logits for ids in prompts], folder + "/logits")
"""


def test_another_process_says_the_same(tokenizer, tmp_path):
    editor = editor_for(tokenizer)
    editor.edit(FACTS)
    learner().unload().save_pretrained(tmp_path / "base")
    editor.model.save_pretrained(tmp_path)
    prompts = [fact.prompt for fact in FACTS] + UNRELATED
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    subprocess.run([sys.executable, "-c", AGAIN, str(tmp_path), json.dumps(ids)], check=True, capture_output=True)
    assert all_equal(torch.load(tmp_path / "logits"), logits_of(editor, prompts))


def test_a_saved_adapter_is_edited_further_and_its_card_tells_the_method(tokenizer, tmp_path):
    editor = editor_for(tokenizer, replay=10)
    editor.edit(FACTS[:3])
    editor.save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "[MEMoE](https://arxiv.org/abs/2405.19086)" in card
    assert "KeyError: 'MEMOE'" in card
    assert "- memoe" in card
    assert "LEMoE" not in card
    loaded = PeftModel.from_pretrained(learner().unload(), tmp_path, is_trainable=True)
    further = LifelongEditor(loaded.eval(), tokenizer, editor.arguments)
    further.edit(FACTS[3:])
    assert answers(further, FACTS) == targets(FACTS)


def test_trainer_trains_the_mixture_and_its_edits_are_found(tokenizer, tmp_path):
    editor = editor_for(tokenizer, normalize=False)
    arguments = TrainingArguments(
        str(tmp_path), num_train_epochs=40, learning_rate=1e-2, report_to="none", save_strategy="no", use_cpu=True
    )
    EditTrainer(editor.model, arguments, train_dataset=FACTS[:3], processing_class=tokenizer).train()
    editor.model.eval()
    said = editor.answers([fact.prompt for fact in FACTS[:3]], 10)
    assert all(text.strip().startswith(target) for text, target in zip(said, targets(FACTS[:3]), strict=True))
    assert {entry["edit"]["prompt"] for entry in editor.edits()} == {fact.prompt for fact in FACTS[:3]}
    assert editor.explain(FACTS[4].prompt).deferred


def test_a_compiled_decoding_step_says_the_same(tokenizer, monkeypatch):
    editor = editor_for(tokenizer)
    editor.edit(FACTS)
    prompts = [*FACTS[:2], Edit(UNRELATED[0], "-")]
    ids = [tokenizer(edit.prompt, return_tensors="pt") for edit in prompts]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
    plain_texts = [editor.model.generate(**each, **options) for each in ids]
    torch._dynamo.reset()
    compiled = torch.compile(editor.model, backend="eager")
    for each, expected in zip(ids, plain_texts, strict=True):
        assert torch.equal(compiled.generate(**each, **options), expected)
    monkeypatch.setattr(editor.root, "forward", torch.compile(editor.root.forward, backend="eager"), raising=True)
    for each, expected in zip(ids, plain_texts, strict=True):
        assert torch.equal(editor.model.generate(**each, **options), expected)
    torch._dynamo.reset()
