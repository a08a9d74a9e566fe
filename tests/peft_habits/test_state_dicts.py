"""`get_peft_model_state_dict`, `set_peft_model_state_dict`, `inject_adapter_in_model`, and `modules_to_save`."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict

from lemoe_hf import LEMoEConfig
from tiny import adapter_state, assert_same, edited, logits, prompts_of, put_edits, tiny


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_a_state_dict_goes_into_a_model_with_fewer_edits(low_cpu_mem_usage):
    source, model, prompts = edited(), edited(), prompts_of(3)
    put_edits(source, prompts)
    state = get_peft_model_state_dict(source)
    assert all("lemoe_" in name and "default" not in name for name in state)
    put_edits(model, prompts[:1], seed=4)
    result = set_peft_model_state_dict(model, state, low_cpu_mem_usage=low_cpu_mem_usage)
    assert not result.unexpected_keys
    assert not [name for name in result.missing_keys if "lemoe_" in name]
    assert_same(adapter_state(model), adapter_state(source))
    assert torch.equal(logits(model, prompts), logits(source, prompts))
    assert model.ledger() == source.ledger()


def test_injection_without_a_peft_model():
    source, prompts = edited(), prompts_of(3)
    put_edits(source, prompts)
    model = inject_adapter_in_model(LEMoEConfig(expert_dtype="float32", relation_gate=False), tiny()).eval()
    assert torch.equal(logits(model, prompts), logits(tiny(), prompts))
    set_peft_model_state_dict(model, get_peft_model_state_dict(source))
    assert torch.equal(logits(model, prompts), logits(source, prompts))


def test_other_modules_are_trained_and_saved_whole(tmp_path):
    model, prompts = edited(modules_to_save=["lm_head"]), prompts_of(2)
    put_edits(model, prompts)
    head = model.get_output_embeddings().modules_to_save["default"]
    assert head.weight.requires_grad
    head.weight.data.mul_(2)
    assert torch.equal(logits(model, [250, 251]), 2 * logits(tiny(), [250, 251]))
    with model.disable_adapter():
        assert torch.equal(logits(model, prompts), logits(tiny(), prompts))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path)
    assert torch.equal(logits(loaded, prompts), logits(model, prompts))
    unloaded = model.unload()  # keeps the modules of the active adapter, as with every method
    assert torch.equal(logits(unloaded, prompts), 2 * logits(tiny(), prompts))


def test_a_revision_and_a_subfolder(hub, tmp_path):
    one, two = edited(), edited()
    put_edits(one, prompts_of(1))
    put_edits(two, prompts_of(2))
    one.push_to_hub("anna/edits")
    two.push_to_hub("anna/edits", revision="later")
    for revision, count in (("main", 1), ("later", 2)):
        loaded = PeftModel.from_pretrained(tiny(), "anna/edits", revision=revision)
        assert len(loaded.ledger()) == count
    two.save_pretrained(tmp_path / "folder" / "inner")
    loaded = PeftModel.from_pretrained(tiny(), tmp_path / "folder", subfolder="inner")
    assert torch.equal(logits(loaded, prompts_of(2)), logits(two, prompts_of(2)))
