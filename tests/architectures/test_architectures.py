"""Every causal language model of transformers that can be built, tiny and random."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import get_peft_model
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from architectures.walk import EDIT, GENERATE_OTHERWISE, HABITS, LONG, UNBUILT, WALKED, build, walk
from lemoe_hf import LEMoEConfig, MEMoEConfig
from lemoe_hf.structure import UNSUITABLE, find_targets


@pytest.mark.architectures
@pytest.mark.parametrize("model_type", WALKED)
def test_every_habit_holds(model_type, tokenizer):
    # What a model generates that contradicts itself is chance.
    held = {habit for habit, holds in walk(model_type, tokenizer) if holds}
    assert held | ({"generate"} if model_type in GENERATE_OTHERWISE else set()) == set(HABITS)


@pytest.mark.parametrize(
    "model_type", ["gpt2", "opt", "qwen3_moe", "gemma3_text", "mamba", "jamba", "gpt_neox", "falcon", "electra"]
)
def test_every_habit_holds_with_a_mixture_that_all_edits_share(model_type, tokenizer):
    """Of each kind one: FFNs and layers without one, mixtures of experts, state spaces, embeddings of another size."""
    arguments = replace(LONG, learning_rate=0.01, betas=(0.9, 0.99))
    assert {habit for habit, holds in walk(model_type, tokenizer, MEMoEConfig, arguments) if holds} == set(HABITS)


@pytest.mark.parametrize("model_type", GENERATE_OTHERWISE)
@torch.no_grad()
def test_some_generate_otherwise_before_any_edit(model_type, tokenizer):
    model = build(model_type)
    ids = tokenizer(EDIT.prompt, return_tensors="pt")["input_ids"]
    text = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False)
    assert not torch.equal(
        model(input_ids=text[:, :-1]).logits.argmax(-1)[:, ids.shape[1] - 1 :], text[:, ids.shape[1] :]
    )


BYPASSED = {
    "gemma3": "model.language_model.layers.3",  # multimodal, with a norm behind the FFN
    "got_ocr2": "model.language_model.layers.3.mlp",  # its vision tower has as many layers
    "gemma3n_text": "model.layers.3.post_feedforward_layernorm",
    "deepseek_v4": "model.layers.3.mlp",  # and not what mixes the streams before it
    "zaya": "model.layers.3.mlp",
    "bert": "bert.encoder.layer.3",
}


@pytest.mark.parametrize(("model_type", "target"), BYPASSED.items())
def test_the_bypass_goes_where_the_ffn_adds_to_the_stream(model_type, target):
    assert find_targets(build(model_type), depth=0.8) == [target]


@pytest.mark.parametrize("model_type", UNSUITABLE)
def test_what_cannot_be_edited_is_refused_with_a_reason(model_type):
    with pytest.raises(ValueError, match="cannot be edited: its layers|cannot be edited: it"):
        get_peft_model(build(model_type), LEMoEConfig())


@pytest.mark.parametrize("model_type", UNBUILT)
def test_what_is_not_built_cannot_be(model_type):
    with pytest.raises((AttributeError, ImportError, StrictDataclassError, ValueError)):
        build(model_type)


def test_the_page_tells_of_every_model():
    page = (Path(__file__).parents[2] / "docs" / "architectures.md").read_text(encoding="utf-8")
    for name in WALKED:
        is_chance = name in GENERATE_OTHERWISE
        cells = ["(chance)" if is_chance and habit == "generate" else "yes" for habit in HABITS]
        assert f"| {name} | {' | '.join(cells)} |\n" in page
    assert all(f"- `{name}`: " in page for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if name not in WALKED)
