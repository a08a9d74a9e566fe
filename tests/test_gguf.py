"""A base model read from a GGUF file: its weights are floats like any other's by the time that edits are made."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from facts import FACTS, learner, plain, targets
from lemoe_hf import LEMoEConfig, LifelongEditor
from tiny import DECODER, logits, unrelated


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
    writer.add_eos_token_id(DECODER["eos_token_id"])
    for name, weight in learner().unload().state_dict().items():
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


def test_a_base_model_from_a_gguf_file(folder, tokenizer, tmp_path):
    def load():
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf").eval()

    model = get_peft_model(load(), LEMoEConfig(relation_gate=False)).eval()
    editor = LifelongEditor(model, tokenizer, plain())
    prompts = [fact.prompt for fact in FACTS[:2]]
    before = editor.answers(prompts, 8)
    editor.edit(FACTS[:2])
    model.save_pretrained(tmp_path)
    loaded = LifelongEditor(PeftModel.from_pretrained(load(), tmp_path), tokenizer)
    for edited in (editor, loaded):
        assert torch.equal(logits(edited.model, unrelated()), logits(load(), unrelated()))
        assert [text.strip() for text in edited.answers(prompts, 8)] == targets(FACTS[:2])
        for number in (0, 1):
            edited.undo(number)
        assert edited.answers(prompts, 8) == before
