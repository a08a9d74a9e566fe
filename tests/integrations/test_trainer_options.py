"""`Trainer`'s own business with a LEMoE adapter: the best of several checkpoints, and where its figures go."""

from __future__ import annotations

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trackio import sqlite_storage
from transformers import TrainerCallback, TrainingArguments

from facts import FACTS, learner
from lemoe_hf import EditTrainer
from tiny import adapter_state, assert_same


@pytest.fixture
def trainer(tokenizer, tmp_path):
    def make(**settings) -> EditTrainer:
        model = learner(expert_dim=8)
        model.peft_config["default"].output_scale = 1.0
        arguments = {
            "output_dir": str(tmp_path / "run"),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "max_steps": 6,
            "learning_rate": 0.05,
            "logging_steps": 2,
            "save_strategy": "no",
        }
        callbacks = settings.pop("callbacks", ())
        return EditTrainer(
            model,
            TrainingArguments(**arguments | settings),
            train_dataset=FACTS[:3],
            eval_dataset=FACTS[:3],
            processing_class=tokenizer,
            callbacks=callbacks,
        )

    return make


class Spoil(TrainerCallback):
    """Remembers the adapter at one step, and makes every later evaluation worse."""

    def __init__(self, best_step: int):
        self.best_step, self.best = best_step, None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.best_step:
            self.best = adapter_state(model)
        elif state.global_step > self.best_step:
            with torch.no_grad():
                for name, weight in model.named_parameters():
                    if "lemoe_open" in name:
                        weight.normal_(std=10.0)


def test_the_best_checkpoint_is_loaded_at_the_end_and_then_committed(trainer):
    spoil = Spoil(best_step=4)
    each = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = trainer(**each, load_best_model_at_end=True, metric_for_best_model="eval_loss", callbacks=[spoil])
    best.train()
    assert best.state.best_model_checkpoint.endswith("checkpoint-4")
    found = adapter_state(best.model)
    opened = {name: tensor for name, tensor in spoil.best.items() if "lemoe_open" in name}
    assert opened
    stored = {name.replace("lemoe_bank", "lemoe_open"): tensor for name, tensor in found.items() if "_bank" in name}
    assert_same({name: stored[name] for name in opened}, opened)
    assert not best.model.base_model.has_open_edits()
    assert len(best.model.base_model.ledger()) == 3


def test_tensorboard_gets_the_losses(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    made = trainer(report_to="tensorboard")
    made.train()
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    assert [event.value for event in board.Scalars("train/loss")] == pytest.approx(logged, rel=1e-6)


def test_trackio_gets_the_losses(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    made = trainer(report_to="trackio", project="facts", trackio_space_id=None, run_name="first")
    made.train()
    logged = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    kept = sqlite_storage.SQLiteStorage.get_logs("facts", "first")
    assert [entry["train/loss"] for entry in kept if "train/loss" in entry] == pytest.approx(logged)
