"""A plugin of pytest that puts our methods in the place of PEFT's in PEFT's own tests, and leaves all other tests out."""

from __future__ import annotations

import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from transformers import (
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

import lemoe_hf.card
from lemoe_hf import ELDERConfig, LEMoEConfig, MEMoEConfig


# The models that are made here stand for those of the Hub, under whose names they lie in folders.
lemoe_hf.card.is_on_hub = lambda name: name is not None


# PEFT's tests import it at their head, for models of images.
sys.modules.setdefault("diffusers", SimpleNamespace(StableDiffusionPipeline=type(None)))

TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = TOKENS | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
SIZES = TOKENS | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
LLAMA = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2}
# The names that PEFT's tests load, and other families beside them.
DECODERS = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": OPTConfig(**SIZES, word_embed_proj_dim=32, ffn_dim=48),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": GPT2Config(**GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": GPTJConfig(**GPT, rotary_dim=4),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": LlamaConfig(**LLAMA),
    "peft-internal-testing/tiny-dummy-qwen2": Qwen2Config(**LLAMA),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": Gemma3TextConfig(**LLAMA, head_dim=8),
    "made-here/tiny-mistral": MistralConfig(**LLAMA),
    "made-here/tiny-qwen3": Qwen3Config(**LLAMA, head_dim=8),
    "made-here/tiny-qwen3-moe": Qwen3MoeConfig(
        **LLAMA, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "made-here/tiny-phi3": Phi3Config(**LLAMA),
    "made-here/tiny-bloom": BloomConfig(**TOKENS, hidden_size=32, n_layer=2, n_head=4),
    "made-here/tiny-gpt-neox": GPTNeoXConfig(**SIZES, intermediate_size=48),
}
# The config of an adapter that PEFT's tests load.
CONFIG = "peft-internal-testing/tiny-opt-lora-revision"

# PEFT's tests of what an adapter changes want one that is no identity.
OURS = (LEMoEConfig, MEMoEConfig, ELDERConfig)
COMMON = {"task_type": "CAUSAL_LM", "init_weights": False}
CASES = {
    "model_id": list(DECODERS),
    "config_cls,config_kwargs": [
        (LEMoEConfig, COMMON | {"layers_to_transform": [0, 1]}),
        # Here the test of `layers_to_transform` finds more than one layer to choose from.
        (LEMoEConfig, COMMON | {"target_modules": ["mlp", "fc2"], "expert": "ffn", "routing": "kv_anchor"}),
        (ELDERConfig, COMMON | {"layers_to_transform": [0, 1]}),
        (MEMoEConfig, COMMON | {"layers_to_transform": [0, 1], "expert_dim": 8}),
        (MEMoEConfig, COMMON | {"target_modules": ["mlp", "fc2"], "expert": "lora", "deferral": False, "top_k": 2}),
    ],
    "test_name, model_id, config_cls, config_kwargs": [
        ("LEMoE 1", "MLP", LEMoEConfig, {"target_modules": "lin0"}),
        ("LEMoE 2", "MLP", LEMoEConfig, {"target_modules": ["lin0", "lin1"], "expert": "ffn"}),
        ("LEMoE 3", "MLP", LEMoEConfig, {"target_modules": ["lin1"], "modules_to_save": ["lin0"]}),
        ("ELDER 1", "MLP", ELDERConfig, {"target_modules": "lin0"}),
        ("ELDER 2", "MLP", ELDERConfig, {"target_modules": ["lin1"], "modules_to_save": ["lin0"]}),
        ("MEMoE 1", "MLP", MEMoEConfig, {"target_modules": "lin0", "expert_dim": 8}),
        ("MEMoE 2", "MLP", MEMoEConfig, {"target_modules": ["lin0", "lin1"], "expert": "lora", "top_k": 2}),
        ("MEMoE 3", "MLP", MEMoEConfig, {"target_modules": ["lin1"], "modules_to_save": ["lin0"], "expert_dim": 8}),
    ],
    "config_class, mandatory_kwargs": [(config, {}) for config in OURS],
    "config_cls": list(OURS),
    "config_class": list(OURS),
}
NOT_OF_A_METHOD = {
    "test_default_target_modules": "asks for an error where no `target_modules` are given; they are found by structure",
    "test_prompt_learning": "of soft prompts",
    "test_save_pretrained_with_runtime_config": "a field of LoRA's config",
    "merge": "experts cannot be merged: which of them act depends on the prompt",
}


# Of these tests there is one config on the Hub for all methods, and here it is LEMoE's; that another one refuses it is ours.
OF_ANOTHER_METHOD = ("test_from_pretrained", "test_from_pretrained_cache_dir")

# Tests of each file that are to be found at least: another version of PEFT may name their parameters otherwise.
LEAST = {"test_config.py": 25, "test_custom_models.py": 150, "test_decoder_models.py": 800}


def refuse_merging(*args: object) -> None:
    pytest.skip(NOT_OF_A_METHOD["merge"])


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if hasattr(metafunc.module, "_skip_if_merging_not_supported"):
        metafunc.module._skip_if_merging_not_supported = refuse_merging
    marks = metafunc.definition.own_markers
    for index, mark in enumerate(marks):
        if mark.name == "parametrize" and mark.args[0] in CASES:
            marks[index] = pytest.mark.parametrize(mark.args[0], CASES[mark.args[0]]).mark


def is_ours(item: pytest.Item) -> bool:
    if not hasattr(item, "callspec"):
        return False
    given = list(item.callspec.params.values())
    # Experts in one tensor are no linear layers, which ELDER stands beside.
    is_apart = ELDERConfig in given and "made-here/tiny-qwen3-moe" in given
    return any(config in given for config in OURS) and not is_apart


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that are given our config, and tell why some of them are not run."""
    config.hook.pytest_deselected(items=[item for item in items if not is_ours(item)])
    items[:] = filter(is_ours, items)
    found = Counter(item.path.name for item in items)
    fewer = {name: found[name] for name, least in LEAST.items() if found[name] < least}
    if fewer and not config.option.keyword:
        raise pytest.UsageError(f"PEFT's tests are given its configs otherwise than before: only {fewer} found ours.")
    for item in items:
        for part, reason in NOT_OF_A_METHOD.items():
            if part in item.originalname:
                item.add_marker(pytest.mark.skip(reason=reason))
        is_another = any(config in item.callspec.params.values() for config in OURS if config is not LEMoEConfig)
        if item.originalname in OF_ANOTHER_METHOD and is_another:
            item.add_marker(pytest.mark.skip(reason="loads the config of another method, which is refused"))
