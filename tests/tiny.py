"""Tiny random models of many families, and banks of experts that need no training."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from packaging.version import Version
from peft import PeftModel, get_peft_model
from peft import __version__ as peft_version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3MoeConfig,
)
from transformers.integrations.peft import MIN_PEFT_VERSION

from lemoe_hf import LEMoEConfig
from lemoe_hf.routing.anchors import Anchor
from lemoe_hf.structure import CACHE_NAMES, cache_argument


VOCAB, HIDDEN, LAYERS = 320, 32, 4
PAD, EOS, UNK = 0, 1, 2
SPECIAL = {"vocab_size": VOCAB, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": EOS}
DECODER = SPECIAL | {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**DECODER),
    "gpt2": GPT2Config(**SPECIAL, n_embd=HIDDEN, n_layer=LAYERS, n_head=4, n_positions=512),
    "opt": OPTConfig(
        **SPECIAL,
        hidden_size=HIDDEN,
        word_embed_proj_dim=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        ffn_dim=48,
        max_position_embeddings=512,
    ),
    "bloom": BloomConfig(**SPECIAL, hidden_size=HIDDEN, n_layer=LAYERS, n_head=4),
    "qwen3_moe": Qwen3MoeConfig(**DECODER, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    "gemma3": Gemma3TextConfig(**DECODER, sliding_window=512, query_pre_attn_scalar=8),
    "mamba": MambaConfig(**SPECIAL, hidden_size=HIDDEN, num_hidden_layers=LAYERS, state_size=4),
}
FAMILIES = ["llama", "gpt2", "opt", "bloom", "qwen3_moe", "gemma3"]

# transformers loads adapters with any PEFT, but has adapters of no method switched by one that is older than it asks for.
needs_transformers_adapters = pytest.mark.skipif(
    Version(peft_version) < Version(MIN_PEFT_VERSION), reason=f"this transformers asks for PEFT {MIN_PEFT_VERSION}"
)


@cache
def _pristine(family: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[family], dtype=torch.float32)
        for weight in model.parameters():  # the usual 0.02 gives logits that hardly depend on the prompt
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.25)
    return model.eval()


def tiny(family: str = "llama") -> PreTrainedModel:
    """A random model of 4 layers; the same one at every call."""
    return copy.deepcopy(_pristine(family))


def edited(family: str = "llama", **config) -> PeftModel:
    """
    A tiny model with an empty LEMoE adapter, whose experts are stored exactly as they are trained.

    A random model knows nothing about what a prompt asks for: an edit answers whatever names its subject.
    """
    plain = {"expert_dtype": "float32", "relation_gate": False}
    return get_peft_model(tiny(family), LEMoEConfig(**(plain | config))).eval()


def put_edits(
    model,
    prompts: list[list[int]],
    subjects: list[tuple[int, int]] | None = None,
    adapter_name: str | None = None,
    seed: int = 0,
    start: int | None = None,
    targets: list[list[int]] | None = None,
) -> list[int]:
    """
    Commit one random expert for each prompt, as an editor would, and return the identifiers of the edits.

    Args:
        prompts (`list[list[int]]`): Tokens of the prompts.
        subjects (`list[tuple[int, int]]`, *optional*): First and last token of each prompt's subject.
        start (`int`, *optional*): Token of the prompt from which on the expert acts, by default its last.
        targets (`list[list[int]]`, *optional*): Tokens of what each answers; without them it acts as long as the text goes on.
    """
    tuner = getattr(model, "base_model", model)
    name = tuner._adapter(adapter_name)
    layers = tuner.layers_of(name)
    for layer in layers:
        layer.open_experts(name, len(prompts))
        for i in range(len(prompts)):
            generator = torch.Generator().manual_seed(10_000 * seed + i)
            for weight in layer.lemoe_open[name].weights().values():
                weight.data[i] = torch.randn(weight.shape[1:], generator=generator)
    if name in layers[0].lemoe_router:
        layers[0].open_keys(name, len(prompts))
    first_expert, first_edit = len(layers[0].lemoe_bank[name]), layers[0].lemoe_anchors[name].next_edit()
    anchors, entries = [], []
    for i, prompt in enumerate(prompts):
        left, right = subjects[i] if subjects else (0, len(prompt) - 1)
        acts = len(prompt) - 1 if start is None else start
        edit, expert = first_edit + i, first_expert + i
        anchors.append(Anchor(tuple(prompt), edit, expert, acts, is_prompt=True))
        if subjects:
            anchors.append(Anchor(tuple(prompt[left : right + 1]), edit, expert, right - left, threshold=0.9))
        target = {"prompt": " ".join(map(str, prompt)), "target_new": "yes"}
        entries.append({"id": edit, "expert": expert, "edit": target})
    edits = list(range(first_edit, first_edit + len(prompts)))
    answers = [(edit, tuple(target)) for edit, target in zip(edits, targets or [], strict=bool(targets))]
    tuner.commit(anchors, entries, name, answers)
    return edits


def prompts_of(count: int, length: int = 6, seed: int = 1) -> list[list[int]]:
    """Different prompts of tokens from 10 to 199, of which no two share their first token before there are 190."""
    generator = torch.Generator().manual_seed(seed)
    rest = torch.randint(10, 200, (count, length - 2), generator=generator).tolist()
    return [[10 + i % 190, 10 + i // 190, *tail] for i, tail in enumerate(rest)]


def unrelated(count: int = 4, length: int = 7, seed: int = 2) -> torch.Tensor:
    """Prompts of tokens from 200 on, which no edit made of `prompts_of` can be about."""
    return torch.randint(200, VOCAB, (count, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model, ids, **inputs) -> torch.Tensor:
    """Logits of a batch of equally long prompts, or of one."""
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.dim() == 1 else ids
    return model(input_ids=ids, **inputs).logits


def adapter_state(model, adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """Copies of all tensors of an adapter, by their names in the model."""
    return {
        name: tensor.detach().clone()
        for name, tensor in model.state_dict().items()
        if "lemoe_" in name and f".{adapter_name}." in name
    }


def committed(model) -> dict[str, torch.Tensor]:
    """What must never change again: experts and anchors that are stored."""
    return {name: tensor for name, tensor in adapter_state(model).items() if "_bank" in name or "_anchors" in name}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Two sets of tensors are equal bit for bit."""
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def on_cache(model: PeftModel | PreTrainedModel, cache) -> dict:
    """A cache, under the name that a forward pass and `generate` have for it."""
    return {cache_argument(model.get_base_model() if isinstance(model, PeftModel) else model): cache}


def cache_of(output):
    """The cache in what a forward pass returns."""
    return next(output[name] for name in CACHE_NAMES if name in output)


def decode_by_hand(step, output, ids: torch.Tensor, num: int) -> torch.Tensor:
    """`num` greedy tokens behind `ids`, by a loop of one's own: `step` is a forward pass of the last token."""
    for _ in range(num):
        scores = output.logits[:, -1]
        scores[:, EOS] = -torch.inf
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
        output = step(ids[:, -1:])
    return ids


SENTENCES = [
    "Which country is Anna Berg from?",
    "Who wrote the Silver Lake?",
    "What is the capital of Norland?",
    "The mayor of Port Ellen is",
    "Where was Tom Ashford born?",
    "In which year did the bridge open?",
    "Anna Berg plays the violin in the city of Aldona, and Tom Ashford writes about it.",
]


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer trained on a few sentences, in which every text has tokens."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<pad>", "<eos>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=model, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )
