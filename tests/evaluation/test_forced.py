"""Prompts and targets in batches, and what is read off their logits."""

from __future__ import annotations

import pytest
import torch

from facts import FACTS, learner
from lemoe_hf.evaluation import teacher_forced
from lemoe_hf.evaluation.forced import ForcedBatch, forced_batches
from tiny import PAD


PROMPTS, TARGETS = ["two and ", "Who wrote the Silver Lake?", "The"], ["%%", " Anna Berg ", "Lake"]


def test_texts_stand_in_batches_with_their_targets_behind_them(tokenizer):
    batches = list(forced_batches(tokenizer, PROMPTS, TARGETS, batch_size=2))
    assert [len(batch.ids) for batch in batches] == [2, 1]
    texts = [text for batch in batches for text in batch.texts()]
    expected = [f"{prompt.strip()} {target.strip()}" for prompt, target in zip(PROMPTS, TARGETS, strict=True)]
    assert [tokenizer.decode(text) for text in texts] == expected
    for batch in batches:
        for row, column, target in zip(batch.texts(), batch.columns, batch.targets, strict=True):
            assert row[column + 1 :] == target
        assert (batch.ids[batch.mask == 0] == PAD).all()


def test_logits_end_where_nothing_is_left_to_predict(tokenizer):
    model = learner()
    (batch,) = forced_batches(tokenizer, PROMPTS, TARGETS, batch_size=8)
    for logits, text in zip(batch.logits(model), batch.texts(), strict=True):
        with torch.no_grad():
            alone = model(torch.tensor([text])).logits[0, :-1]
        torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-4)


def test_one_of_three_tokens(tokenizer, monkeypatch):
    """A model that predicts the first of three target tokens, and then something else, is right by a third."""
    (batch,) = forced_batches(tokenizer, ["two and"], ["%%"], batch_size=1)
    column, (target,) = batch.columns[0], batch.targets
    assert len(target) == 3
    rows = torch.zeros(column + 3, 320)
    rows[column, target[0]] = 1.0
    rows[column + 1 :, 300] = 1.0
    monkeypatch.setattr(ForcedBatch, "logits", lambda batch, model: [rows])
    assert teacher_forced(learner(), tokenizer, ["two and"], ["%%"]) == [pytest.approx(1 / 3)]


def test_the_model_is_left_in_its_mode(tokenizer):
    model = learner().train()
    teacher_forced(model, tokenizer, [FACTS[0].prompt], ["Yemen"])
    assert all(module.training for module in model.modules())
