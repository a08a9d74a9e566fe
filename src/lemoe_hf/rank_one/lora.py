"""Rank-one edits as a LoRA adapter: B holds what edits write, A what they read, a column and a row an edit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .update import Update


def lora_config(root: PreTrainedModel, updates: Sequence[Update]) -> LoraConfig:
    """A config in which the rank of each matrix is the number of its edits, and nothing is scaled."""
    ranks: dict[str, int] = {}
    for update in updates:
        ranks[update.name] = ranks.get(update.name, 0) + 1
    # PEFT reads the keys as regular expressions, and joins them to whatever stands before a name.
    pattern = {re.escape(name): rank for name, rank in ranks.items()}
    matrix: Any = root.get_submodule(next(iter(ranks)))
    matrix = matrix.get_base_layer() if hasattr(matrix, "get_base_layer") else matrix
    most = max(ranks.values())
    return LoraConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=getattr(root, "name_or_path", None) or None,
        target_modules=sorted(ranks),
        r=most,
        lora_alpha=most,
        rank_pattern=pattern,
        alpha_pattern=dict(pattern),
        fan_in_fan_out=isinstance(matrix, Conv1D),
        inference_mode=True,
    )


@torch.no_grad()
def attach(root: PreTrainedModel, model: PeftModel | None, updates: Sequence[Update], adapter_name: str) -> PeftModel:
    """
    Put edits on a model as its adapter, in the place of those that it had.

    Args:
        root ([`~transformers.PreTrainedModel`]): The model itself.
        model ([`~peft.PeftModel`], *optional*): Around it, if it has edits already.
        updates (`Sequence` of [`Update`]): All edits, at least one.
        adapter_name (`str`): Its name.

    Raises:
        ValueError: If PEFT does not put LoRA where the edits are.
    """
    config = lora_config(root, updates)
    if model is None:
        model = get_peft_model(root, config, adapter_name)
    else:
        model.delete_adapter(adapter_name)
        model.add_adapter(adapter_name, config)
        model.set_adapter(adapter_name)
    names = {update.name for update in updates}
    if any(not hasattr(root.get_submodule(name), "lora_A") for name in names):
        model.unload()
        raise ValueError(
            f"PEFT puts no LoRA on {sorted(names)} of {type(root).__name__}: of a model with layers of experts it converts "
            f"the names of dense ones too. Edit this model with LEMoE."
        )
    for name in names:
        layer: Any = root.get_submodule(name)
        here = [update for update in updates if update.name == name]
        layer.lora_A[adapter_name].weight.copy_(torch.stack([update.left for update in here]))
        layer.lora_B[adapter_name].weight.copy_(torch.stack([update.right for update in here], 1))
    return model
