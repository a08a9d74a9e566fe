"""The tokens that a forward pass is given, be it by their embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def tokens_of(root: Any, inputs: Mapping[str, Any], may_match: bool) -> torch.Tensor | None:
    """
    Tokens of shape `(b, t)`, -2 for an embedding of no known token; `None` where there is no text.

    Args:
        root (`PreTrainedModel`): The model.
        inputs (`Mapping`): What it is given.
        may_match (`bool`): Whether there is anything to be found in a text; without it embeddings are not looked up.
    """
    ids = inputs.get("input_ids")
    if ids is not None:
        return ids.long()
    embeds = inputs.get("inputs_embeds")
    if embeds is None:
        return None
    if not may_match:
        return torch.full(embeds.shape[:2], -2, device=embeds.device)
    embedding = root.get_input_embeddings()
    table = embedding(torch.arange(len(embedding.weight), device=embeds.device)).to(embeds.dtype)
    found = []
    for some in embeds.flatten(0, 1).split(256):
        nearest = (some @ table.T - table.pow(2).sum(-1) / 2).argmax(-1)
        found.append(torch.where((table[nearest] == some).all(-1), nearest, -2))
    return torch.cat(found).view(embeds.shape[:2])
