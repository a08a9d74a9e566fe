"""The parts of a causal language model are found by its structure."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from architectures.configs import tiny_config
from lemoe_hf import LEMoEConfig, LEMoELayer, structure
from tiny import FAMILIES, HIDDEN, LAYERS, tiny


TARGETS = {
    "llama": "model.layers.3.mlp",
    "gpt2": "transformer.h.3.mlp",
    "opt": "model.decoder.layers.3",
    "bloom": "transformer.h.3.mlp",
    "qwen3_moe": "model.layers.3.mlp",
    "gemma3": "model.layers.3",
    "mamba": "backbone.layers.3",
}


@pytest.mark.parametrize(("family", "target"), TARGETS.items())
def test_the_ffn_is_found_or_else_the_layer(family, target):
    """OPT has no module to call the FFN, Mamba has none at all, and Gemma 3 normalises what its FFN adds."""
    assert structure.find_targets(tiny(family), depth=0.8) == [target]


@pytest.mark.parametrize(("depth", "index"), [(0.0, 0), (0.5, 2), (0.8, 3), (1.0, 3)])
def test_depth_is_a_share_of_the_layers(depth, index):
    assert structure.find_targets(tiny(), depth) == [f"model.layers.{index}.mlp"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stack_is_the_decoders(family):
    name, stack = structure.find_stack(tiny(family))
    assert len(stack) == LAYERS
    assert name.rsplit(".", 1)[-1] in ("layers", "h")


@pytest.mark.parametrize("family", TARGETS)
def test_the_hidden_size_is_found(family):
    assert structure.hidden_size(tiny(family)) == HIDDEN


@pytest.mark.parametrize(
    ("family", "width"), [("llama", 48), ("gpt2", 128), ("bloom", 128), ("opt", 48), ("gemma3", 48)]
)
def test_the_width_of_the_ffn_is_found(family, width):
    """What `expert_dim=None` gives an expert."""
    (target,) = structure.find_targets(tiny(family), 0.8)
    assert structure.ffn_width(tiny(family).get_submodule(target), HIDDEN) == width


@pytest.mark.parametrize(
    ("model_type", "width"),
    [
        ("phi3", 48),  # gate and input in one linear layer
        ("qwen3_moe", 24),  # experts in one tensor, gate and input side by side
        ("gpt_oss", 48),  # the same, transposed, with biases
        ("jetmoe", 48),  # in modules of their own
        ("qwen2_moe", 40),  # one beside them is wider
        ("zaya", 24),  # with a router of several layers
    ],
)
def test_a_fused_ffn_is_as_wide_as_what_its_output_projection_reads(model_type, width):
    config = tiny_config(model_type)
    config.shared_expert_intermediate_size = 40
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    (target,) = structure.find_targets(model, 0.8)
    assert structure.ffn_width(model.get_submodule(target), HIDDEN) == width


def test_the_width_is_that_of_the_ffn_where_a_layer_is_bypassed_whole():
    """And not of its attention, which in Gemma 4 is wider here."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config("gemma4_text"))
    (layer,) = get_peft_model(model, LEMoEConfig(expert_dim=None)).base_model.layers_of()
    assert layer.is_block
    assert layer.lemoe_open["default"].in_proj.shape[2] == 48


@pytest.mark.parametrize(("module", "width"), [(nn.Linear(8, 20), 20), (nn.Linear(8, 8), 8), (nn.LayerNorm(8), 8)])
def test_what_is_no_ffn_has_the_width_of_its_largest_matrix(module, width):
    assert structure.ffn_width(module, 8) == width


def test_a_mixture_inside_a_layer_is_not_the_stack():
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(9))
            self.mlp = nn.Sequential(nn.Linear(4, 4))

    model = nn.Module()
    model.blocks = nn.ModuleList(Layer() for _ in range(3))
    assert structure.find_stack(model)[0] == "blocks"
    assert structure.find_targets(model, 0.8) == ["blocks.2.mlp"]


def test_without_a_stack_the_error_lists_what_was_looked_at():
    model = nn.Sequential()
    model.add_module("encoder", nn.Linear(3, 3))
    with pytest.raises(
        ValueError, match=r"No stack of layers found in Sequential.*encoder \(Linear\).*target_modules"
    ):
        structure.find_stack(model)


@pytest.mark.parametrize("layers", [[4], [-1], [0, 9]])
def test_layers_that_do_not_exist_are_refused(layers):
    with pytest.raises(
        ValueError, match=r"has 4 layers \(0 to 3\) in `model.layers`|counts layers from 0; got \[-1\]"
    ):
        get_peft_model(tiny(), LEMoEConfig(layers_to_transform=layers))


def test_layers_can_be_chosen_as_in_peft():
    model = get_peft_model(tiny(), LEMoEConfig(layers_to_transform=[1, 2]))
    names = [name for name, module in model.named_modules() if isinstance(module, LEMoELayer)]
    assert names == [f"base_model.model.model.layers.{index}.mlp" for index in (1, 2)]
    model = get_peft_model(tiny("gpt2"), LEMoEConfig(target_modules=["mlp"], layers_to_transform=0))
    names = [name for name, module in model.named_modules() if isinstance(module, LEMoELayer)]
    assert names == ["base_model.model.transformer.h.0.mlp"]


def test_models_that_are_no_causal_language_models_are_refused():
    encoder_decoder = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    )
    with pytest.raises(ValueError, match="encoder-decoder.*AutoModelForCausalLM"):
        get_peft_model(encoder_decoder, LEMoEConfig())
    masked = BertForMaskedLM(
        BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    )
    with pytest.raises(ValueError, match="masked language model.*AutoModelForCausalLM"):
        get_peft_model(masked, LEMoEConfig())


def test_the_fingerprint_tells_sizes_and_families_apart():
    prints = {structure.fingerprint(tiny(family)) for family in TARGETS}
    assert len(prints) == len(TARGETS)
    assert structure.fingerprint(tiny()) == structure.fingerprint(tiny().to(torch.bfloat16))
