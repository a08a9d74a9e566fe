"""LoRA and LEMoE on one model: what PEFT allows, and what it refuses in words that tell why."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftMixedModel, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter

from lemoe_hf import LEMoEConfig
from tiny import edited, logits, needs_transformers_adapters, prompts_of, put_edits, tiny, unrelated


def lora(**settings) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_lora_weights=False, **settings)


def test_a_mixed_model_refuses_with_the_list_of_what_it_takes():
    for refuse in (
        lambda: PeftMixedModel(tiny(), LEMoEConfig()),
        lambda: get_peft_model(tiny(), LEMoEConfig(), mixed=True),
    ):
        with pytest.raises(ValueError, match="'LEMOE' is not compatible with the `PeftMixedModel`. Compatible types"):
            refuse()


def test_one_peft_model_takes_adapters_of_one_method():
    for first, second in ((LEMoEConfig(), lora()), (lora(), LEMoEConfig())):
        model = get_peft_model(tiny(), first)
        with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
            model.add_adapter("second", second)
        assert list(model.peft_config) == ["default"]


def test_edits_on_top_of_a_lora_adapter(tmp_path):
    """One `PeftModel` around another: the LoRA adapter is the base model of the edits."""
    torch.manual_seed(0)
    inner, prompts = get_peft_model(tiny(), lora()).eval(), prompts_of(2)
    before = logits(inner, prompts), logits(inner, unrelated())
    inner.save_pretrained(tmp_path / "lora")
    model = get_peft_model(inner, LEMoEConfig(relation_gate=False)).eval()
    assert torch.equal(logits(model, prompts), before[0])
    put_edits(model, prompts)
    answers = logits(model, prompts)
    assert not torch.allclose(answers[:, -1], before[0][:, -1], atol=1e-2)
    assert torch.equal(logits(model, unrelated()), before[1])
    model.save_pretrained(tmp_path / "edits")
    again = PeftModel.from_pretrained(tiny(), tmp_path / "lora")
    again = PeftModel.from_pretrained(again, tmp_path / "edits")
    assert torch.equal(logits(again, prompts), answers)


def test_edits_on_a_model_with_lora_merged_into_it():
    torch.manual_seed(0)
    merged, prompts = get_peft_model(tiny(), lora()).merge_and_unload().eval(), prompts_of(2)
    before = logits(merged, unrelated())
    model = get_peft_model(merged, LEMoEConfig(relation_gate=False)).eval()
    put_edits(model, prompts)
    assert torch.equal(logits(model, unrelated()), before)
    assert not torch.equal(logits(model, prompts), logits(tiny(), prompts))


@needs_transformers_adapters
def test_both_are_active_at_once_in_a_model_of_transformers(tmp_path):
    torch.manual_seed(0)
    model, source, prompts = tiny(), edited(), prompts_of(2)
    put_edits(source, prompts)
    source.save_pretrained(tmp_path)
    model.add_adapter(lora(), "lora")
    with_lora = [logits(model, texts) for texts in (prompts, unrelated())]
    model.load_adapter(tmp_path, "edits")
    model.set_adapter(["lora", "edits"])
    assert not torch.allclose(logits(model, prompts)[:, -1], with_lora[0][:, -1], atol=1e-2)
    assert torch.equal(logits(model, unrelated()), with_lora[1])
    model.set_adapter("edits")
    assert torch.equal(logits(model, prompts), logits(source, prompts))
    assert not torch.equal(logits(model, unrelated()), with_lora[1])


def test_rows_of_one_batch_cannot_have_different_adapters():
    model = edited()
    model.add_adapter("other", LEMoEConfig())
    ids = torch.tensor(prompts_of(2))
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="`adapter_names` mixes LoRA adapters in one batch.*Call `set_adapter`"):
            call(input_ids=ids, adapter_names=["default", "other"])


def test_hot_swapping_is_refused_and_loading_onto_a_name_does_the_same(tmp_path):
    source, model, prompts = edited(), edited(), prompts_of(2)
    put_edits(source, prompts)
    source.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Hotswapping only supports LORA but LEMOE was passed"):
        hotswap_adapter(model, tmp_path, adapter_name="default")
    model.load_adapter(tmp_path, adapter_name="default")
    assert torch.equal(logits(model, prompts), logits(source, prompts))
