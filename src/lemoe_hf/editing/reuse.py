"""Whether what is frozen can be reused in a model, found out by trying."""

from __future__ import annotations

import logging
import math

import torch
from torch import nn
from transformers.cache_utils import DynamicSlidingWindowLayer

from .. import structure
from ..routing.context import RoutingContext
from .activations import CachedBatch
from .samples import Sample


logger = logging.getLogger(__name__)


def reusable_columns(root: nn.Module, context: RoutingContext, samples: list[Sample], pad: int) -> float:
    """
    Up to how many columns, cached ones and those of a step, reusing what is frozen gives the base model's own logits.

    There is no bound for decoders whose only memory is a cache of keys and values, and the attention window where they
    have one. It is 0 for state-space models, and where layers hand each other more than hidden states. A few samples are
    run in both ways to find out; a model that cannot go on from a cache of ours says so in its own way.
    """
    if root.get_output_embeddings() is None or not {"past_key_values", "position_ids"} <= structure.accepted_by(root):
        return 0
    plain = CachedBatch(root, context, samples, pad, reuse=False)
    with torch.no_grad():
        expected = plain.logits({})
        try:
            cached = CachedBatch(root, context, samples, pad)
            logits = cached.logits({})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.info("Nothing frozen is reused in %s: %r", type(root).__name__, error)
            return 0
    if cached.cache is None:
        return 0
    windows = [layer.sliding_window for layer in cached.cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    bound = min(windows, default=math.inf)
    if cached.past.shape[1] + cached.ids.shape[1] >= bound:
        return 0
    tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
    same = logits.shape == expected.shape and bool((logits - expected).abs().max() <= tolerance * expected.abs().max())
    return bound if same else 0
