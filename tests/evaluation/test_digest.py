"""Scores are found again for the model that they were taken of, and for no other."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model

from facts import FACTS, editor_for
from lemoe_hf.evaluation import digest as module
from lemoe_hf.evaluation.digest import digest, digest_of_base, digest_of_model, digest_of_tensor, digest_of_tokenizer
from tiny import edited, tiny


@pytest.fixture
def editor(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    return editor


def test_a_tensor_is_told_by_every_bit():
    tensor = torch.randn(3, 5)
    changed = tensor.clone()
    changed[2, 4] = torch.nextafter(changed[2, 4], torch.tensor(9.0))
    assert digest_of_tensor(tensor) == digest_of_tensor(tensor.clone()) != digest_of_tensor(changed)
    assert digest_of_tensor(tensor[:, :2]) == digest_of_tensor(tensor[:, :2].contiguous())
    assert digest_of_tensor(tensor.bfloat16()) != digest_of_tensor(tensor)
    assert digest_of_tensor(torch.tensor(-0.0)) != digest_of_tensor(torch.tensor(0.0))


def test_a_row_is_told_by_all_its_fields():
    assert digest("model", FACTS[0]) == digest("model", FACTS[0])
    assert len({digest("model", fact) for fact in FACTS} | {digest("other", FACTS[0]), digest("model")}) == 8


def test_the_base_model_is_the_same_whatever_adapter_is_on_it(editor):
    base = digest_of_base(edited())
    # The learner's logits are steeper: its head is another one.
    assert digest_of_base(editor.model) != base
    editor.model.get_output_embeddings().weight.data /= 4
    assert digest_of_base(editor.model) == base
    for lora in (LoraConfig(target_modules=["q_proj"]), LoraConfig(target_modules=[], modules_to_save=["mlp"])):
        if lora.modules_to_save:
            lora.target_modules = ["v_proj"]
        assert digest_of_base(get_peft_model(tiny(), lora)) == base
    assert digest_of_base(edited("gpt2")) != base


def test_other_versions_are_another_model(editor, monkeypatch):
    before = digest_of_model(editor.model)
    monkeypatch.setattr(module, "versions", lambda: {"lemoe_hf": "9.9"})
    assert digest_of_model(editor.model) != before


def test_a_saved_adapter_is_the_one_that_it_was(editor, tmp_path):
    editor.save_pretrained(tmp_path)
    base = tiny()
    base.get_output_embeddings().weight.data *= 4
    for is_trainable in (True, False):
        loaded = PeftModel.from_pretrained(base, tmp_path, is_trainable=is_trainable)
        assert digest_of_model(loaded) == digest_of_model(editor.model)
        loaded.unload()


def test_every_edit_and_every_setting_makes_another_model(editor):
    digests = [digest_of_model(editor.model)]
    editor.edit(FACTS[1])
    digests.append(digest_of_model(editor.model))
    editor.config.threshold = 0.5
    digests.append(digest_of_model(editor.model))
    editor.undo(0)
    digests.append(digest_of_model(editor.model))
    with editor.model.disable_adapter():
        digests.append(digest_of_model(editor.model))
    assert len(set(digests)) == 5


def test_while_adapters_are_off_the_model_is_its_base(editor):
    with editor.model.disable_adapter():
        before = digest_of_model(editor.model)
    editor.edit(FACTS[1])
    with editor.model.disable_adapter():
        assert digest_of_model(editor.model) == before


def test_a_tokenizer_is_told_by_its_tokens_and_its_template(tokenizer):
    same, chatting, larger = (copy.deepcopy(tokenizer) for _ in range(3))
    chatting.chat_template = "{{ messages }}"
    larger.add_tokens(["Zembla"])
    assert digest_of_tokenizer(tokenizer) == digest_of_tokenizer(same)
    assert len({digest_of_tokenizer(each) for each in (tokenizer, chatting, larger)}) == 3


def test_what_cannot_be_measured_against_its_base_model_is_refused():
    learned_prompts = get_peft_model(tiny(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"))
    for model in (learned_prompts, tiny()):
        with pytest.raises(TypeError, match=f"Only a PeftModel .* such as LEMoE or LoRA; got {type(model).__name__}"):
            digest_of_base(model)
