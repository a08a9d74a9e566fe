"""Editors that write facts into tiny models in a second."""

from __future__ import annotations

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from lemoe_hf import Edit, RankOneArguments, RankOneEditor
from tiny import SENTENCES, tiny


# Targets of one token, right behind the subject: attention in a random model passes nothing on.
EDITS = [
    Edit("They live at Silver Lake", "is", subject="Silver Lake"),
    Edit("This is Port Ellen", "Tom", subject="Port Ellen"),
    Edit("He speaks of Tom Ashford", "of", subject="Tom Ashford"),
    Edit("We know Anna Berg", "the", subject="Anna Berg"),
]


def arguments(**settings) -> RankOneArguments:
    quick = {"layer": 1, "clamp": 50.0, "max_steps": 30, "contexts": ((4, 2),), "ridge": 1e-2, "gate": False}
    return RankOneArguments(**(quick | settings))


def steep(family: str = "llama") -> PreTrainedModel:
    """A tiny model whose logits are steep enough to be turned round."""
    model = tiny(family)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(3)
    return model


def editor_of(family: str, tokenizer, **settings) -> RankOneEditor:
    return RankOneEditor(steep(family), tokenizer, arguments(**settings), data=SENTENCES)


def weights(model) -> dict[str, torch.Tensor]:
    """All base weights, by their names without what PEFT adds to them."""
    found = model.get_base_model().state_dict() if isinstance(model, PeftModel) else model.state_dict()
    return {name.replace(".base_layer", ""): t.clone() for name, t in found.items() if "lora_" not in name}
