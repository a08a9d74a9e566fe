"""TRL's `SFTTrainer` with `peft_config=LEMoEConfig(...)`, in its defaults: bf16 autocast and gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from trl import SFTConfig, SFTTrainer

from facts import FACTS, learner, targets
from lemoe_hf import CommitCallback, LEMoEConfig, LifelongEditor


@pytest.fixture(scope="module")
def trainer(tokenizer, tmp_path_factory) -> SFTTrainer:
    rows = [{"prompt": fact.prompt, "completion": f" {fact.target_new}"} for fact in FACTS[:3]]
    arguments = SFTConfig(
        str(tmp_path_factory.mktemp("sft")),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        num_train_epochs=60,
        learning_rate=0.05,
        lr_scheduler_type="constant",
    )
    trainer = SFTTrainer(
        learner().unload(),
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LEMoEConfig(relation_gate=False, expert_dim=8, output_scale=1.0),
        callbacks=[CommitCallback()],
    )
    trainer.train()
    trainer.save_model()
    return trainer


def test_it_trains_the_edits_and_commits_them(trainer, tokenizer):
    assert trainer.args.bf16
    editor = LifelongEditor(trainer.model.eval(), tokenizer)
    prompts = [fact.prompt for fact in FACTS[:3]]
    assert [text.strip() for text in editor.answers(prompts, 10)] == targets(FACTS[:3])
    assert {entry["edit"]["prompt"] for entry in editor.edits()} == set(prompts)
    assert not editor.tuner.has_open_edits()
    assert editor.explain(FACTS[4].prompt).deferred


def test_the_base_model_is_left_as_it_was(trainer):
    expected = learner().unload().state_dict()
    found = trainer.model.get_base_model().state_dict()
    for name, tensor in found.items():
        if "lemoe_" not in name:
            assert torch.equal(tensor, expected[name.replace(".base_layer", "")]), name


def test_what_it_saves_reloads(trainer, tokenizer):
    loaded = PeftModel.from_pretrained(learner().unload(), trainer.args.output_dir)
    answers = LifelongEditor(loaded, tokenizer).answers([fact.prompt for fact in FACTS[:3]], 10)
    assert [text.strip() for text in answers] == targets(FACTS[:3])
