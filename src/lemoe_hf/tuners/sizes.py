"""Sizes of what an adapter has stored: they grow with its edits, and whoever loads it makes room before it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import nn

from ..routing.anchors import Anchors
from ..routing.names import Names
from ..routing.relations import Relations
from ..routing.targets import Targets
from .config import EditingConfig
from .experts import Experts
from .ledger import Bytes


# What adapters from before these were kept do not have, and are loaded without.
LATER = ("lemoe_targets", "lemoe_vocabulary", "lemoe_names")


class Storing(Protocol):
    """A layer with what it has stored of each adapter: what is known of its edits, if it leads, and its weights."""

    configs: dict[str, EditingConfig]
    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...]
    of_fixed_size: tuple[str, ...]

    def part(self, name: str, adapter_name: str) -> nn.Module: ...
    def leads(self, adapter_name: str) -> bool: ...
    def anchors(self, adapter_name: str) -> Anchors: ...
    def names(self, adapter_name: str) -> Names: ...
    def targets(self, adapter_name: str) -> Targets: ...
    def relations(self, adapter_name: str) -> Relations | None: ...
    def ledger(self, adapter_name: str) -> Bytes: ...
    def sizes(self, adapter_name: str) -> dict[str, int]: ...


def write_sizes(layer: Storing, adapter_name: str) -> None:
    """Write the sizes of everything stored to the config, from which a loader makes room before it reads."""
    for name, size in sizes_of(layer, adapter_name).items():
        setattr(layer.configs[adapter_name], name, size)


def sizes_of(layer: Storing, adapter_name: str) -> dict[str, int]:
    """The sizes of everything stored, by their names in the config."""
    anchors, targets, relations = (
        layer.anchors(adapter_name),
        layer.targets(adapter_name),
        layer.relations(adapter_name),
    )
    names, vocabulary = layer.names(adapter_name), layer.part("vocabulary", adapter_name)
    sizes = {
        "num_anchors": len(anchors),
        "num_anchor_tokens": len(anchors.tokens),
        "num_ledger_bytes": len(layer.ledger(adapter_name).bytes),
        "num_targets": len(targets),
        "num_target_tokens": len(targets.tokens),
        "num_token_kinds": len(vocabulary.kinds),
        "num_reply_tokens": len(vocabulary.reply),
        "num_spelling_bytes": len(vocabulary.spelling),
        "num_spelled_tokens": len(vocabulary.spelling_lengths),
        "num_names": len(names),
        "num_name_letters": len(names.letters),
    }
    if relations is not None:
        tokens = (relations.marks, relations.stops, relations.continuing)
        tensors = (relations.mean, relations.cohort, *tokens, relations.keys)
        sizes |= {name: len(tensor) for name, tensor in zip(Relations.sizes, tensors, strict=True)}
    return sizes | layer.sizes(adapter_name)


def stored(layer: Storing, adapter_name: str) -> Iterator[tuple[nn.Module, str, str, torch.Tensor]]:
    """Everything that is saved of an adapter: its module, its key within the layer, its name and the tensor."""
    for container in layer.adapter_layer_names + layer.other_param_names:
        if adapter_name in getattr(layer, container):
            module = getattr(layer, container)[adapter_name]
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                yield module, f"{container}.{adapter_name}.{name}", name, tensor


def check(layer: Storing, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> None:
    """
    Check a state dict, with keys relative to the layer, before anything of it is loaded.

    Raises:
        ValueError: If a tensor is missing, made for another model, or does not go with the others.
    """
    for _, key, _, tensor in stored(layer, adapter_name):
        saved, named = state_dict.get(key), key.replace(f".{adapter_name}.", ".")
        if saved is None:
            raise ValueError(
                f"The adapter's weights lack {named}: the file is damaged, or belongs to another method. It holds "
                f"{sorted(state_dict)[:8] or 'nothing for this layer'}."
            )
        is_fixed = key.startswith(layer.of_fixed_size)
        if (
            tensor.dim() != saved.dim()
            or (tensor.dim() == 3 and tensor.shape[1:] != saved.shape[1:])
            or (is_fixed and tensor.shape != saved.shape)
        ):
            raise ValueError(
                f"The adapter's {named} has the shape {tuple(saved.shape)}, where this model needs "
                f"{tuple(tensor.shape)}: it was made for another hidden size, `expert_dim` or `num_experts`. "
                f"Load it with its own config, onto the base model it was made for."
            )
    for container in layer.adapter_layer_names + layer.other_param_names:
        module = dict(getattr(layer, container)).get(adapter_name)
        prefix = f"{container}.{adapter_name}."
        own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
        if isinstance(module, Experts):
            sizes = {name: len(own[name]) for name in module.names}
            if len(set(sizes.values())) > 1:
                raise ValueError(
                    f"The adapter's weights are damaged: {container} has unequal numbers of experts, {sizes}."
                )
        if hasattr(module, "check"):
            module.check(own)


def completed(layer: Storing, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with nothing in the place of what was not kept yet when it was saved."""
    if not state_dict:  # of another method: `check` says so
        return state_dict
    missing = {
        key: tensor.new_zeros(0)
        for _, key, _, tensor in stored(layer, adapter_name)
        if key.startswith(LATER) and key not in state_dict
    }
    return state_dict | missing


def fit_to(layer: Storing, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> None:
    """Resize every tensor of an adapter to what a state dict, with keys relative to the layer, holds for it."""
    for module, key, name, tensor in list(stored(layer, adapter_name)):
        if tensor.shape != state_dict[key].shape:
            resized = tensor.new_zeros(state_dict[key].shape)
            if isinstance(tensor, nn.Parameter):
                resized = nn.Parameter(resized, requires_grad=tensor.requires_grad)
            setattr(module, name, resized)
    if layer.leads(adapter_name):
        write_sizes(layer, adapter_name)
