"""
Tiny models whose last token is what a prompt asks for, and edits that act only where they are asked for.

Or, with `by="words"`, models whose prompts ask by any word of the sentence.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from lemoe_hf.routing.route import Route
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from lemoe_hf import LEMoEConfig
from lemoe_hf.editing.relations import prompt_features
from lemoe_hf.routing.relations import LabelledPrompts, Relations
from tiny import PAD, logits, prompts_of, put_edits, tiny


# Tokens that ask for something; a full stop; and a score that lies between those of equal and of different askers.
A, B, C, D = ASKERS = [301, 302, 303, 304]
STOP, THRESHOLD = 310, 8.0


def clear(family: str = "llama") -> PreTrainedModel:
    """A tiny model whose hidden states tell the latest token, above all if that is one of the askers."""
    model = tiny(family)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and any(part.isdigit() for part in name.split(".")):
            weight.data *= 0.3
    rows = model.get_input_embeddings().weight.data
    rows[ASKERS] = 4 * (rows[ASKERS] + rows[300])
    return model


@cache
def _learned(family: str, layers: tuple[int, ...] | None, by: str) -> dict[str, torch.Tensor]:
    """Relations of a clear model: one for each asker, and one for all other tokens; `by` hidden states, or words."""
    model = get_peft_model(clear(family), LEMoEConfig(layers_to_transform=layers and list(layers))).eval()
    prompts = [
        [*prompt, *asker]
        for asker in [*([each] for each in ASKERS), []]
        for length in (4, 8)
        for prompt in prompts_of(60, length, seed=sum(asker))
    ]
    relation = torch.arange(len(ASKERS) + 1).repeat_interleave(120)
    relations = Relations()
    features = features_of_prompts(model, prompts, [(0, 0)] * len(prompts))
    num_words = model.get_input_embeddings().weight.shape[1]
    # What is alike in all prompts tells nothing.
    features[:, slice(num_words) if by == "hidden" else slice(num_words, None)] = 0
    relations._learn(LabelledPrompts(features, relation, torch.zeros_like(relation), relation >= 0), 1)
    noise = torch.randn(400, relations.num_directions, generator=torch.Generator().manual_seed(0))
    relations.cohort = F.normalize(noise, dim=-1).bfloat16()
    relations.thresholds.fill_(THRESHOLD)
    return dict(relations.named_buffers())


def features_of_prompts(
    model: PeftModel, prompts: list[list[int]], subjects: list[tuple[int, int]], adapter_name: str = "default"
) -> torch.Tensor:
    root, context, stops = model.base_model.model, model.base_model.context, torch.tensor([STOP])
    return prompt_features(root, context, adapter_name, prompts, subjects, stops, PAD)


def gated(
    family: str = "llama", marks: tuple[int, ...] = (), adapter_name: str = "default", by: str = "hidden", **config
) -> PeftModel:
    """
    A clear model with an empty adapter, which knows what its askers ask for and that `marks` end a question.

    The bypass is not in the last layer: on which columns an expert acts changes what is cached above it.
    """
    options = {"expert_dtype": "float32", "layers_to_transform": [2]} | config
    model = get_peft_model(clear(family), LEMoEConfig(**options), adapter_name=adapter_name).eval()
    teach(model, family, marks, adapter_name, by)
    return model


def teach(
    model: PeftModel,
    family: str = "llama",
    marks: tuple[int, ...] = (),
    adapter_name: str = "default",
    by: str = "hidden",
) -> None:
    layers = model.peft_config[adapter_name].layers_to_transform
    relations = relations_of(model, adapter_name)
    for name, tensor in _learned(family, layers and tuple(layers), by).items():
        setattr(relations, name, tensor.clone())
    relations.marks = torch.tensor(marks, dtype=torch.int32)
    relations.stops = torch.tensor([*marks, STOP], dtype=torch.int32)


def relations_of(model: PeftModel, adapter_name: str = "default") -> Relations:
    return model.base_model.lemoe_layers(adapter_name)[0].lemoe_relations[adapter_name]


def put_asked(
    model: PeftModel, prompts: list[list[int]], span: tuple[int, int], seed: int = 0, name="default"
) -> None:
    """Commit random experts, as an editor would, which act where their prompts' askers ask for them."""
    edits = put_edits(model, prompts, [span] * len(prompts), adapter_name=name, seed=seed)
    features = features_of_prompts(model, prompts, [span] * len(prompts), name)
    embedded = relations_of(model, name).embed(features)
    is_question = torch.ones(len(prompts), dtype=torch.bool)
    model.base_model.lemoe_layers(name)[0].remember(name, edits, embedded, is_question)


# --------------------------------------------------------------------------------------------------------- expectations


def imposed(model: PeftModel, rows: list[list[tuple[int, int, int | None]]]):
    """A context in which the experts of each row act from a column to another, whatever the prompts ask for."""
    slots = max(1, *map(len, rows))
    padded = [[(0, 0, 0)] * (slots - len(row)) + row for row in rows]
    table = torch.tensor([[(e, s, Route.ENDLESS if end is None else end) for e, s, end in row] for row in padded])
    experts, start, end = table.unbind(-1)
    gates = (end > start).float()
    committed = len(model.base_model.lemoe_layers()[0].lemoe_bank["default"])
    route = Route(experts, gates, start, end, committed, last_start=int(start.max()))
    route.seal()
    return model.base_model.context.pinned({"default": route})


def expected_logits(model: PeftModel, ids, rows: list[list[tuple[int, int, int | None]]], **inputs) -> torch.Tensor:
    with imposed(model, rows):
        return logits(model, ids, **inputs)


def expected_text(model: PeftModel, ids, rows: list[list[tuple[int, int, int | None]]], **options) -> torch.Tensor:
    with imposed(model, rows):
        return generate(model.base_model.model, ids, **options)


def generate(model, ids, **options) -> torch.Tensor:
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.dim() == 1 else ids
    defaults = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": PAD}
    return model.generate(input_ids=ids, **(defaults | options))
