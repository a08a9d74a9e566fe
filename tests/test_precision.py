"""Base models in every precision: edits are learned, the base keeps its bits, and what is saved is what was there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torchao.quantization import Int8WeightOnlyConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel, TorchAoConfig

from facts import FACTS, UNRELATED, plain
from lemoe_hf import LEMoEConfig, LifelongEditor
from lemoe_hf.generation import answers
from lemoe_hf.structure import ffn_width
from tiny import DECODER, logits, prompts_of, put_edits, unrelated


SUBJECT = (2, 4)
LOADERS: dict[str, dict] = {
    "float32": {"dtype": torch.float32},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "torchao_int8": {"dtype": torch.bfloat16, "quantization_config": TorchAoConfig(Int8WeightOnlyConfig())},
    "bitsandbytes_8bit": {"dtype": torch.float16, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    "bitsandbytes_4bit": {
        "dtype": torch.bfloat16,
        "quantization_config": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model with steep logits, which learns a fact within the default steps; in blocks of 64, as bitsandbytes asks."""
    path = tmp_path_factory.mktemp("base")
    config = LlamaConfig(**(DECODER | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.15)
    model.get_output_embeddings().weight.data *= 4
    model.save_pretrained(path)
    return path


@pytest.fixture(params=LOADERS)
def load(request, folder) -> Callable[[], PreTrainedModel]:
    return lambda: AutoModelForCausalLM.from_pretrained(folder, **LOADERS[request.param]).eval()


def test_what_is_deferred_keeps_every_bit_and_what_is_saved_comes_back(load, tmp_path):
    base, prompts = load(), prompts_of(3)
    model = get_peft_model(load(), LEMoEConfig(relation_gate=False)).eval()
    put_edits(model, prompts, subjects=[SUBJECT] * 3)
    routed = logits(model, prompts)
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    assert (routed[:, -1] - logits(base, prompts)[:, -1]).abs().max() > 0.5
    with model.disable_adapter():
        assert torch.equal(logits(model, prompts), logits(base, prompts))
    model.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(load(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
        assert torch.equal(logits(loaded, prompts), routed)
    base.state_dict()  # which saving reads; on a CPU, bitsandbytes takes another 4-bit kernel from then on
    unloaded = model.unload()
    assert torch.equal(logits(unloaded, prompts), logits(base, prompts))


def test_facts_are_learned_generated_and_undone(load, tokenizer):
    base = load()
    before, scores = answers(base, tokenizer, UNRELATED, 4), logits(base, prompts_of(3))
    editor = LifelongEditor(get_peft_model(base, LEMoEConfig(relation_gate=False)), tokenizer, plain())
    result = editor.edit(FACTS[:3])
    assert editor.model.base_model.layers_of()[0].lemoe_bank["default"].in_proj.dtype == torch.bfloat16
    told = answers(editor.model, tokenizer, [fact.prompt for fact in FACTS[:3]], 12)
    assert sum(fact.target_new in answer for fact, answer in zip(FACTS, told, strict=False)) == 3, (result, told)
    assert answers(editor.model, tokenizer, UNRELATED, 4) == before
    for edit in range(3):
        editor.undo(edit)
    assert torch.equal(logits(editor.model.unload(), prompts_of(3)), scores)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("autocast", [True, False])
def test_open_experts_have_the_dtype_peft_promises(name, autocast, folder):
    """float32 with `autocast_adapter_dtype`, else the base model's; beside integers they stay in float32."""
    base = AutoModelForCausalLM.from_pretrained(folder, **LOADERS[name])
    model = get_peft_model(base, LEMoEConfig(), autocast_adapter_dtype=autocast)
    (layer,) = model.base_model.layers_of()
    is_packed = name.startswith("bitsandbytes")
    expected = torch.float32 if autocast or is_packed else LOADERS[name]["dtype"]
    assert layer.lemoe_open["default"].in_proj.dtype == expected
    assert layer._get_base_layer_device_and_dtype(layer.base_layer)[0] == torch.device("cpu")


@pytest.mark.parametrize("name", LOADERS)
def test_the_width_of_an_ffn_is_seen_through_packed_weights(name, folder):
    base = AutoModelForCausalLM.from_pretrained(folder, **LOADERS[name])
    assert ffn_width(base.model.layers[0].mlp, 64) == 128
