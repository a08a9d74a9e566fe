"""What a LEMoE adapter has stored of its experts, checked before it is used."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...routing.together import wrong


def check_stacks(tensors: Mapping[str, torch.Tensor]) -> None:
    """
    Check the stacks of experts of a layer and, where keys find them, of keys.

    Raises:
        ValueError: If stacks are missing, are of unequal lengths or other shapes, or keys name experts that are not there.
    """
    sizes = {}
    for stack in ("lemoe_bank", "lemoe_open"):
        named = {name: len(tensor) for name, tensor in tensors.items() if name.startswith(f"{stack}.")}
        for name in (f"{stack}.in_proj", f"{stack}.out_proj"):
            if name not in named:
                raise wrong(name, "is missing")
        if len(set(named.values())) > 1:
            raise wrong(stack, f"has unequal numbers of experts, {named}")
        for name in named:
            if tensors[name].dim() != 3 or not tensors[name].is_floating_point():
                raise wrong(
                    name, f"has the shape {tuple(tensors[name].shape)}, and must be a stack of matrices of floats"
                )
        sizes[stack] = len(tensors[f"{stack}.in_proj"])
    if not sizes["lemoe_open"]:
        raise wrong("lemoe_open.in_proj", "holds no expert, and one must be in training")
    if "lemoe_router_bank.keys" in tensors:
        check_keys(tensors, sizes["lemoe_bank"], sizes["lemoe_open"])


def check_keys(tensors: Mapping[str, torch.Tensor], num_committed: int, num_open: int) -> None:
    shared = 0
    for half, num in (("lemoe_router_bank", num_committed), ("lemoe_router", num_open)):
        keys, down, up = (tensors[f"{half}.{name}"] for name in ("keys", "down", "up"))
        if len(keys) != num:
            raise wrong(f"{half}.keys", f"has {len(keys)} keys for {num} experts")
        if len(down) != len(up):
            raise wrong(half, f"has {len(down)} projections down and {len(up)} up")
        shared += len(down)
    if shared not in (1, num_committed + num_open):
        raise wrong(
            "lemoe_router.down", f"and the bank have {shared} projections for {num_committed + num_open} experts"
        )
    kept, experts = tensors["lemoe_router_bank.anchors"], tensors["lemoe_router_bank.anchor_expert"]
    if len(kept) != len(experts):
        raise wrong("lemoe_router_bank.anchor_expert", f"names {len(experts)} experts for {len(kept)} anchors")
    if len(experts) and not 0 <= int(experts.min()) <= int(experts.max()) < num_committed + num_open:
        raise wrong("lemoe_router_bank.anchor_expert", f"names an expert that is not there: {experts.tolist()[:8]}")
