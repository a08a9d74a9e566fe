"""What is deleted leaves nothing behind, and may come back under the same name."""

from __future__ import annotations

import pytest
import torch

from gated import A, gated, teach
from lemoe_hf import LEMoEConfig
from tiny import edited, logits, prompts_of, put_edits, tiny


def test_a_deleted_adapter_is_in_no_table():
    model = edited()
    model.add_adapter("other", LEMoEConfig(layers_to_transform=[1]))
    model.delete_adapter("other")
    layers, context = model.base_model.context.layers, model.base_model.context
    assert all("other" not in table for layer in layers for table in (layer.configs, layer.lemoe_bank))
    assert "other" not in context.taps
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ValueError, match="other"):
        model.delete_adapter("other")


def test_an_adapter_of_the_same_name_looks_at_prompts_once():
    """A hook left behind would record every hidden state twice."""
    model = gated()
    model.delete_adapter("default")
    model.add_adapter("default", LEMoEConfig(expert_dtype="float32", layers_to_transform=[2]))
    model.set_adapter("default")
    teach(model)
    for block in model.base_model.context.taps["default"]:
        hooks = [hook for hook in block._forward_pre_hooks.values() if hook == model.base_model.context.before_block]
        assert len(hooks) == 1
    assert logits(model.eval(), [20, 21, A]).isfinite().all()


def test_deleting_the_last_adapter_leaves_the_base_model():
    model, prompts = edited(), prompts_of(2)
    put_edits(model, prompts)
    model.delete_adapter("default")
    assert model.active_adapters == []
    assert torch.equal(logits(model.base_model.model, prompts), logits(tiny(), prompts))
