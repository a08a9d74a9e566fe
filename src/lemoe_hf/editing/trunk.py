"""The frozen part of a model, run once over the texts that experts are trained on, where the model allows that."""

from __future__ import annotations

import logging
import math
from itertools import zip_longest

import torch
from torch import nn
from transformers.cache_utils import DynamicSlidingWindowLayer

from .. import structure
from ..routing.context import RoutingContext
from .activations import CachedBatch
from .samples import Sample


# Rows of one pass.
TEXTS_AT_ONCE = 32

logger = logging.getLogger(__name__)


class Trunk:
    """
    Args:
        root (`nn.Module`): The model, with its LEMoE layers.
        context ([`RoutingContext`]): Of that model.
        pad (`int`): The padding token.
    """

    def __init__(self, root: nn.Module, context: RoutingContext, pad: int):
        self.root, self.context, self.pad = root, context, pad
        self._reusable: float | None = None

    def run(self, samples: list[list[Sample]]) -> tuple[CachedBatch, list[Sample]]:
        """
        Run the frozen part over the samples of several edits.

        Args:
            samples (`list` of `list` of [`Sample`]): Of each edit, in its own prompt first, then elsewhere.

        Returns:
            The batch to train on, and its samples, row by row.
        """
        # Texts of one surrounding begin alike and are about as long as each other.
        groups = []
        for texts in zip_longest(*samples):
            alike = sorted(filter(None, texts), key=lambda sample: len(sample.prompt) + len(sample.target))
            groups += [alike[first : first + TEXTS_AT_ONCE] for first in range(0, len(alike), TEXTS_AT_ONCE)]
        if self._reusable is None:
            self._reusable = reusable_columns(self.root, self.context, groups[0][:4], self.pad)
        rows = [sample for group in groups for sample in group]
        past = max(sample.start for sample in rows)
        step = max(len(sample.prompt) + len(sample.target) - sample.start for sample in rows)
        reuse, from_start = self._reusable > 0, past + step < self._reusable
        passes = [CachedBatch(self.root, self.context, group, self.pad, reuse, from_start) for group in groups]
        return CachedBatch.concat(passes), rows


def reusable_columns(root: nn.Module, context: RoutingContext, samples: list[Sample], pad: int) -> float:
    """
    Up to how many columns, cached ones and those of a step, all that is frozen can be reused.

    There is no bound for decoders whose only memory is a cache of keys and values, and the attention window where they
    have one. It is 0 where what is frozen cannot be reused at all: for state-space models, and where layers hand each
    other more than hidden states. A few samples are run in both ways to find out, which have to give the same logits; a
    model that cannot go on from a cache of ours says so in its own way.
    """
    if root.get_output_embeddings() is None or not {"past_key_values", "position_ids"} <= structure.accepted_by(root):
        return 0
    plain = CachedBatch(root, context, samples, pad, reuse=False)
    with torch.no_grad():
        expected = plain.logits({})
        try:
            cached = CachedBatch(root, context, samples, pad)
            bound = window_of(cached)
            if cached.past.shape[1] + cached.ids.shape[1] >= bound:
                cached = CachedBatch(root, context, samples, pad, from_start=False)
            logits = cached.logits({})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.info("Nothing frozen is reused in %s: %r", type(root).__name__, error)
            return 0
    if cached.cache is None:
        return 0
    tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
    same = logits.shape == expected.shape and bool((logits - expected).abs().max() <= tolerance * expected.abs().max())
    return bound if same else 0


def window_of(batch: CachedBatch) -> float:
    """The shortest attention window of the layers whose keys and values are cached."""
    layers = [] if batch.cache is None else batch.cache.layers
    return min(
        (each.sliding_window for each in layers if isinstance(each, DynamicSlidingWindowLayer)), default=math.inf
    )
