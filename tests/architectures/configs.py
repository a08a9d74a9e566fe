"""A tiny config for every causal language model of transformers: the defaults of its class with every size cut down."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig

from tiny import EOS, HIDDEN, LAYERS, PAD, VOCAB


# Sizes by the names that config classes give them. A class takes those that it has.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "decoder_vocab_size"), VOCAB),
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "dim", "emb_dim", "embedding_size", "word_embed_proj_dim", "lru_width"),
        HIDDEN,
    ),
    **dict.fromkeys(("input_embedding_size", "embedding_dim", "hidden_size_global"), HIDDEN),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), LAYERS),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_query_groups"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "attention_head_dim", "d_head", "dim_head", "kv_channels"), 8),
    **dict.fromkeys(("attention_head_size", "v_head_dim", "linear_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_hidden_size"), 48),
    **dict.fromkeys(("d_inner", "dff", "dim_ff", "dense_intermediate_size", "feed_forward_size"), 48),
    **dict.fromkeys(("intermediate_size_mlp", "expert_ffn_hidden_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("shared_experts_intermediate_size", "moe_shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "num_shared_experts"), 1),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), 512),
    **dict.fromkeys(("max_target_positions", "model_max_length"), 512),
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_head_dim": 16,
    "index_head_dim": 16,
    "index_n_heads": 4,
    "index_topk": 64,
    "rotary_dim": 4,
    "state_size": 4,
    "ssm_state_size": 4,
    "mamba_d_state": 4,
    "chunk_size": 8,
    "mamba_chunk_size": 8,
    "sliding_window": 512,
    "first_k_dense_replace": 1,
    "tie_word_embeddings": False,
    "is_decoder": True,
    "is_encoder_decoder": False,
}

SPECIAL_TOKENS = {"pad_token_id": PAD, "bos_token_id": EOS, "eos_token_id": EOS}

# What a few need beside that: sizes that must go together, kinds of layers of which the first four have only one.
SAME_HEADS: dict[str, Any] = {"num_key_value_heads": 4}
MAMBA2: dict[str, Any] = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1}
OWN_SIZES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v3", "deepseek_v32"), SAME_HEADS),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "sarvam_mla", "youtu", "nemotron"), SAME_HEADS),
    **dict.fromkeys(("hunyuan_v1_dense", "hunyuan_v1_moe", "ministral"), {"head_dim": 8}),
    "bailing_hybrid": SAME_HEADS | {"layer_group_size": 2},
    **dict.fromkeys(("cohere", "cohere2"), {"logit_scale": 1.0}),
    "bamba": MAMBA2 | {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64, "num_hidden_layers": 4},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 48},
    },
    "deepseek_v2": SAME_HEADS | {"num_experts_per_tok": 2},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots3_note_text": SAME_HEADS
    | dict.fromkeys(("swa_qk_nope_head_dim", "swa_v_head_dim"), 8)
    | {
        "head_dim": 16,
        "swa_head_dim": 16,
        "swa_num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
    },
    "dory": {"n_input_layers": 1, "n_output_layers": 0},  # the others run twice, the bypassed one among them
    **dict.fromkeys(("inkling2_text", "inkling2_loop_text"), {"unpadded_vocab_size": VOCAB}),
    **dict.fromkeys(("gemma3n_text", "gemma4_unified_assistant"), {"num_kv_shared_layers": 0}),
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": MAMBA2 | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": SAME_HEADS | {"layer_types": ["linear_attention", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": SAME_HEADS | {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    **dict.fromkeys(
        ("qwen4_exp", "qwen4_exp_text"),
        {
            "ngram_vocab_size_base": 64,
            "split_ngram_parts": 1,
            "ple_layer_ids": [1],
            "ple_embed_dim": 16,
            "hc_lowrank": 8,
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 16,
            "indexer_compress_ratio": 4,
        },
    ),
    "mllama_text_model": {"cross_attention_layers": [1]},  # it leaves them out where there is no image
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh"] * 2},
    "roc_bert": {
        "pronunciation_vocab_size": 64,
        "shape_vocab_size": 64,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "rwkv": {"attention_hidden_size": HIDDEN},
    "zamba": SAME_HEADS | {"attention_head_dim": None, "attn_layer_period": 2},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str) -> PretrainedConfig:
    """A config of this model type, with four layers of thirty-two channels."""
    return shrink(CONFIG_MAPPING[model_type])


def shrink(kind: type[PretrainedConfig]) -> PretrainedConfig:
    defaults = kind().to_dict()
    sizes = {name: size for name, size in SIZES.items() if defaults.get(name) is not None}
    sizes |= {name: 0.0 for name, size in defaults.items() if "drop" in name and isinstance(size, float)}
    sizes |= {name: token for name, token in SPECIAL_TOKENS.items() if name in defaults}
    for name in kind.sub_configs:
        part = defaults.get(name)
        if isinstance(part, dict) and part.get("model_type") in CONFIG_MAPPING:
            sizes[name] = shrink(CONFIG_MAPPING[part["model_type"]])
    return kind(**(sizes | OWN_SIZES.get(kind.model_type, {})))
