"""A base model read from a GGUF file: its weights are floats like any other's by the time that edits are made."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from lemoe_hf import LEMoEConfig
from tiny import DECODER, logits, prompts_of, put_edits, tiny, unrelated


NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, its matrices in 8 bits."""
    path = tmp_path_factory.mktemp("gguf")
    writer = gguf.GGUFWriter(path / "tiny.gguf", "llama")
    writer.add_block_count(DECODER["num_hidden_layers"])
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(DECODER["vocab_size"])
    for name, weight in tiny().state_dict().items():
        stem = name.removesuffix(".weight").removeprefix("model.layers.")
        layer, _, part = stem.partition(".") if stem[0].isdigit() else ("", "", stem)
        target = (f"blk.{layer}." if layer else "") + NAMES[part] + ".weight"
        values = weight.numpy()
        if weight.dim() == 2 and weight.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_base_model_from_a_gguf_file(folder, tmp_path):
    def load():
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf").eval()

    base, prompts = load(), prompts_of(3)
    model = get_peft_model(load(), LEMoEConfig(relation_gate=False)).eval()
    put_edits(model, prompts)
    routed = logits(model, prompts)
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    assert not torch.allclose(routed[:, -1], logits(base, prompts)[:, -1], atol=1e-2)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(load(), tmp_path), prompts), routed)
