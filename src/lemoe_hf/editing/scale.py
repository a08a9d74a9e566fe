"""The unit in which experts are trained: what the module they stand beside adds."""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.reference import reference_prompts
from ..routing.context import RoutingContext
from ..tuners.layer import EditingLayer
from .hooks import recorded


def output_scale(
    root: nn.Module, context: RoutingContext, layer: EditingLayer, tokenizer: PreTrainedTokenizerBase
) -> float:
    """Mean absolute value of what a bypassed module adds to the residual stream, on a few reference prompts."""
    sequences = tokenizer(list(reference_prompts()[:16]))["input_ids"]

    def passed(outputs: bool) -> tuple[torch.Tensor, torch.Tensor]:
        modules, pad = [layer.base_layer], tokenizer.pad_token_id
        ((_, _, mask, (states,)),) = recorded(root, context, modules, sequences, pad, outputs)
        return mask.bool(), states

    mask, added = passed(outputs=True)
    if layer.is_block:
        added = added - passed(outputs=False)[1]
    # Some models keep more columns than there are tokens, or all in one row: they count as they are.
    return (added[mask] if added.shape[:2] == mask.shape else added).abs().float().mean().item()
