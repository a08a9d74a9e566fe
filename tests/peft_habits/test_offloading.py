"""Hooks of accelerate that keep weights elsewhere, and fetch them for each forward pass."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from peft import PeftModel, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedModel

from lemoe_hf import LEMoEConfig
from tiny import edited, logits, prompts_of, put_edits, tiny, unrelated


def check(model: PeftModel, prompts: list[list[int]], answers: torch.Tensor) -> None:
    assert torch.equal(logits(model, prompts), answers)
    assert torch.equal(logits(model, unrelated()), logits(tiny(), unrelated()))
    ids = torch.tensor(prompts)
    text = model.generate(input_ids=ids, max_new_tokens=3, do_sample=False)
    assert torch.equal(text[:, ids.shape[1]], answers[:, -1].argmax(-1))
    assert text.shape == (len(prompts), ids.shape[1] + 3)


def test_offloading_an_edited_model(tmp_path):
    for offload in (cpu_offload, lambda model, device: disk_offload(model, str(tmp_path), device)):
        model, prompts = edited(), prompts_of(3)
        put_edits(model, prompts)
        answers = logits(model, prompts)
        offload(model, torch.device("cpu"))
        assert any(weight.device.type == "meta" for weight in model.parameters())
        check(model, prompts, answers)


def test_an_adapter_on_an_offloaded_base_model(tmp_path: Path):
    source, prompts = edited(), prompts_of(3)
    put_edits(source, prompts)
    source.save_pretrained(tmp_path)
    base = tiny()
    cpu_offload(base, torch.device("cpu"))
    check(PeftModel.from_pretrained(base, tmp_path), prompts, logits(source, prompts))


def bases_with_a_device_map(folder: Path) -> list[PreTrainedModel]:
    tiny().save_pretrained(folder)
    return [
        dispatch_model(tiny(), {"": "cpu"}, force_hooks=True),
        LlamaForCausalLM.from_pretrained(folder, device_map="cpu"),
        LlamaForCausalLM.from_pretrained(
            folder, device_map={"model": "cpu", "lm_head": "disk"}, offload_folder=folder
        ),
    ]


def test_a_base_model_with_a_device_map(tmp_path):
    plain, prompts = edited(), prompts_of(3)
    put_edits(plain, prompts)
    for base in bases_with_a_device_map(tmp_path):
        config = LEMoEConfig(relation_gate=False, expert_dtype="float32")
        model = get_peft_model(base, config).eval()
        put_edits(model, prompts)
        check(model, prompts, logits(plain, prompts))
