"""Sizes of what an adapter has stored: they grow with its edits, and whoever loads it makes room before it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Protocol

import torch
from torch import nn

from ..routing.anchors import Anchors
from ..routing.names import Names
from ..routing.relations import Relations
from ..routing.targets import Targets
from .config import EditingConfig
from .ledger import Bytes
from .stamp import Stamp


# What adapters from before these were kept do not have, and are loaded without.
LATER = ("names", "targets", "vocabulary", "stamp")
LATER_TENSORS = ("emphasis", "spelling", "spelling_lengths")


class Storing(Protocol):
    """A layer with what it has stored of each adapter: what is known of its edits, if it leads, and its weights."""

    prefix: ClassVar[str]
    configs: dict[str, EditingConfig]
    adapter_layer_names: tuple[str, ...]
    other_param_names: tuple[str, ...]
    of_fixed_size: tuple[str, ...]
    of_any_width: tuple[str, ...]

    def part(self, name: str, adapter_name: str) -> nn.Module: ...
    def get_base_layer(self) -> nn.Module: ...
    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device, torch.dtype]: ...
    def container(self, name: str) -> nn.ModuleDict: ...
    def leads(self, adapter_name: str) -> bool: ...
    def anchors(self, adapter_name: str) -> Anchors: ...
    def names(self, adapter_name: str) -> Names: ...
    def targets(self, adapter_name: str) -> Targets: ...
    def relations(self, adapter_name: str) -> Relations | None: ...
    def ledger(self, adapter_name: str) -> Bytes: ...
    def stamp(self, adapter_name: str) -> Stamp: ...
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
        tensors = (relations.mean, relations.cohort, *tokens, relations.keys, relations.emphasis)
        sizes |= {name: len(tensor) for name, tensor in zip(Relations.sizes, tensors, strict=True)}
    return sizes | layer.sizes(adapter_name)


def stored(layer: Storing, adapter_name: str) -> Iterator[tuple[nn.Module, str, str, torch.Tensor]]:
    """Everything that is saved of an adapter: its module, its key within the layer, its name and the tensor."""
    for container in layer.adapter_layer_names + layer.other_param_names:
        if adapter_name in getattr(layer, container):
            module = getattr(layer, container)[adapter_name]
            for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
                yield module, f"{container}.{adapter_name}.{name}", name, tensor


def own_tensors(layer: Storing, adapter_name: str) -> dict[str, torch.Tensor]:
    """The same, by names that do not tell the adapter."""
    return {key.replace(f".{adapter_name}.", ".", 1): tensor for _, key, _, tensor in stored(layer, adapter_name)}


def check_fits(layer: Storing, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> None:
    """
    Check whether a state dict, with keys relative to the layer, goes into it, before anything of it is loaded.

    Raises:
        ValueError: If a tensor is missing, or made for another model.
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
            or (tensor.shape[1:] != saved.shape[1:] and not key.startswith(layer.of_any_width))
            or (is_fixed and tensor.shape != saved.shape)
        ):
            raise ValueError(
                f"The adapter's {named} has the shape {tuple(saved.shape)}, where this model needs "
                f"{tuple(tensor.shape)}: it was made for another hidden size, `expert_dim` or `num_experts`. "
                f"Load the base model it was made for, and its own config."
            )


def completed(layer: Storing, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict with nothing in the place of what was not kept yet when it was saved."""
    if not state_dict:  # of another method: `check` says so
        return state_dict
    missing = {}
    for module, key, name, tensor in stored(layer, adapter_name):
        container = key.partition(".")[0]
        is_later = container.removeprefix(layer.prefix) in LATER
        is_missing = is_later and not any(other.startswith(f"{container}.") for other in state_dict)
        if is_missing or (name in LATER_TENSORS and key not in state_dict):
            shape = tensor.shape if isinstance(module, Stamp) else (0,)
            missing[key] = torch.zeros(shape, dtype=tensor.dtype)
    return state_dict | missing


def fit_to(layer: Storing, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> None:
    """Resize every tensor of an adapter to what a state dict, with keys relative to the layer, holds for it."""
    device = layer._get_base_layer_device_and_dtype(layer.get_base_layer())[0]
    for module, key, name, tensor in list(stored(layer, adapter_name)):
        if tensor.shape != state_dict[key].shape or tensor.device.type == "meta":
            place = device if tensor.device.type == "meta" else tensor.device
            resized = torch.zeros(state_dict[key].shape, dtype=tensor.dtype, device=place)
            if isinstance(tensor, nn.Parameter):
                resized = nn.Parameter(resized, requires_grad=tensor.requires_grad)
            setattr(module, name, resized)
    if layer.leads(adapter_name):
        write_sizes(layer, adapter_name)


def fill_in(layer: Storing, adapter_name: str) -> None:
    """Put nothing in the place of what a loader had nothing for, and the config tells of no size either."""
    device = layer._get_base_layer_device_and_dtype(layer.get_base_layer())[0]
    for module, _, name, tensor in list(stored(layer, adapter_name)):
        if tensor.device.type == "meta" and not tensor.numel():
            empty = torch.zeros(tensor.shape, dtype=tensor.dtype, device=device)
            is_weight = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(empty, requires_grad=tensor.requires_grad) if is_weight else empty)
