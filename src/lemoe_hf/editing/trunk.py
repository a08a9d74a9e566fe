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
        self._reusable: tuple[bool, float] | None = None

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
            self._reusable = reusable(self.root, self.context, groups[0][:4], self.pad)
        reuse, num_columns = self._reusable
        rows = [sample for group in groups for sample in group]
        past = max(sample.start for sample in rows)
        step = max(len(sample.prompt) + len(sample.target) - sample.start for sample in rows)
        from_start = past + step < num_columns
        passes = [CachedBatch(self.root, self.context, group, self.pad, reuse, from_start) for group in groups]
        return CachedBatch.concat(passes), rows


def reusable(root: nn.Module, context: RoutingContext, samples: list[Sample], pad: int) -> tuple[bool, float]:
    """
    What can be reused of the frozen part of a model, so that it gives the base model's own logits.

    A few samples are run in every way to find out; a model that cannot go on from what it is given says so in its own way.

    Returns:
        Whether what lies below the bypass can be: not where layers hand each other more than hidden states. And up to how
        many columns, cached ones and those of a step, keys and values can be: without a bound for decoders whose only
        memory they are, up to the attention window where there is one, and 0 for all others, such as state-space models.
    """
    if root.get_output_embeddings() is None:
        return False, 0.0
    with torch.no_grad():
        expected = CachedBatch(root, context, samples, pad, reuse=False).logits({})
    tolerance = 1e-3 if expected.dtype == torch.float32 else 5e-2

    def tried(from_start: bool) -> CachedBatch | None:
        try:
            batch = CachedBatch(root, context, samples, pad, from_start=from_start)
            with torch.no_grad():
                logits = batch.logits({})
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            logger.info("%s does not go on from what is cached: %r", type(root).__name__, error)
            return None
        same = logits.shape == expected.shape and (logits - expected).abs().max() <= tolerance * expected.abs().max()
        return batch if same else None

    if tried(from_start=False) is None:
        return False, 0.0
    takes_cache = structure.cache_argument(root) is not None and "position_ids" in structure.accepted_by(root)
    batch = tried(from_start=True) if takes_cache else None
    if batch is None or batch.cache is None:
        return True, 0.0
    windows = [layer.sliding_window for layer in batch.cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    return True, min(windows, default=math.inf)
