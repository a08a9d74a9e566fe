"""Tiny models with a mixture of experts that needs no training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel, get_peft_model

from lemoe_hf import MEMoEConfig
from lemoe_hf.routing.anchors import Anchor
from lemoe_hf.routing.mixture import Mixture
from tiny import tiny


def mixture(family: str = "llama", **config) -> PeftModel:
    """A tiny model with an empty MEMoE adapter, whose edits answer whatever names their subject."""
    return get_peft_model(tiny(family), MEMoEConfig(**({"relation_gate": False, "expert_dim": 8} | config))).eval()


def put_facts(
    model: PeftModel,
    prompts: list[list[int]],
    subjects: list[tuple[int, int]] | None = None,
    adapter_name: str | None = None,
    seed: int = 0,
    targets: list[list[int]] | None = None,
) -> list[int]:
    """Give the experts and the gate random weights, and store the anchors of edits, whose identifiers are returned."""
    tuner = model.base_model
    name = tuner._adapter(adapter_name)
    layers = tuner.layers_of(name)
    generator = torch.Generator().manual_seed(seed)
    for layer in layers:
        for weight in [*layer.memoe_mixture[name].parameters(), layer.memoe_gate[name].weight]:
            weight.data = torch.randn(weight.shape, generator=generator)
    first = layers[0].anchors(name).next_edit()
    anchors, entries = [], []
    for edit, (i, prompt) in enumerate(enumerate(prompts), first):
        anchors.append(Anchor(tuple(prompt), edit, 0, len(prompt) - 1, is_prompt=True))
        if subjects:
            left, right = subjects[i]
            anchors.append(Anchor(tuple(prompt[left : right + 1]), edit, 0, right - left, threshold=0.9))
        entries.append({"id": edit, "expert": 0, "edit": {"prompt": " ".join(map(str, prompt)), "target_new": "yes"}})
    edits = list(range(first, first + len(prompts)))
    answers = [(edit, tuple(target)) for edit, target in zip(edits, targets or [], strict=bool(targets))]
    tuner.store(anchors, entries, name, answers)
    return edits


@contextmanager
def gated(model: PeftModel) -> Iterator[list[tuple[Mixture, torch.Tensor]]]:
    """Of every forward pass inside, what acted and the gates of all experts."""
    layer, seen = model.base_model.layers_of()[0], []
    plain = layer.delta

    def delta(name: str, acting: Mixture, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            anchors = torch.nn.functional.rms_norm(acting.anchors, acting.anchors.shape[-1:])
            gate = layer.memoe_gate[name]
            given = anchors if layer.configs[name].normalize else acting.anchors
            seen.append((acting, gate(x, given[:, : gate.anchor_features], acting.noise)))
        return plain(name, acting, x)

    layer.delta = delta
    try:
        yield seen
    finally:
        del layer.delta
