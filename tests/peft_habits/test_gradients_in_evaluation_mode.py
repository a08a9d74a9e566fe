"""`from_pretrained` leaves a model in evaluation mode, and people compute losses there all the same."""

from __future__ import annotations

import pytest
import torch

from tiny import FAMILIES, edited, logits, prompts_of, put_edits, tiny, unrelated


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ids", [prompts_of(2), unrelated(2).tolist()])
def test_a_loss_has_gradients_of_zero_and_nothing_is_learned(family, ids):
    base, model = tiny(family), edited(family)
    put_edits(model, prompts_of(2))
    batch = {"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}
    expected = logits(model, batch["input_ids"], labels=batch["labels"])
    output = model(**batch)
    output.loss.backward()
    assert torch.equal(output.logits, expected)
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert gradients
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert len(model.base_model.ledger()) == 2
    assert torch.equal(model(input_ids=unrelated()).logits, logits(base, unrelated()))
