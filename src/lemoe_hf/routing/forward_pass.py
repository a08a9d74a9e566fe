"""What a forward pass is given and gives: its cache and what is kept beside it, its hidden states, labels and loss."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..structure import CACHE_NAMES
from .route import Route


# Of each adapter; None where every row is deferred.
Routes = dict[str, Route | None]


@dataclass
class CacheState:
    """
    What is kept beside a KV cache: the routes of its rows, and the tokens of the prompt so far (-1 for others).

    `columns` have been seen, as far as the cache does not count them itself; `awaited` are yet to come of the prompt of
    the pinned routes with the mark `pinned`, where it comes in chunks.
    """

    routes: Routes
    ids: torch.Tensor | None
    columns: int
    awaited: int = 0
    pinned: object | None = None


def cache_in(holder) -> object | None:
    """The cache among the arguments of a forward pass, or in its output."""
    for name in CACHE_NAMES:
        cache = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        if cache is not None:
            return cache
    return None


def columns_in(cache, state: CacheState | None) -> int:
    """How many columns a cache holds."""
    try:
        return int(cache.get_seq_length())
    except (AttributeError, ValueError):  # no cache, or one that keeps a state and no count
        return state.columns if state is not None else 0


def first_tensor(args: tuple, kwargs: dict) -> torch.Tensor:
    """The hidden states among the arguments of a module."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


def token_labels(inputs: Mapping) -> torch.Tensor | None:
    """The labels among the arguments of a forward pass, unless they are one a row, as of a classifier."""
    labels = inputs.get("labels")
    return labels if labels is not None and labels.dim() > 1 else None


def with_loss(output, loss: torch.Tensor, has_labels: bool):
    """The output of a model, with another loss added to its own, as mixtures of experts add that of their routers."""
    if isinstance(output, tuple) and has_labels:
        return (output[0] + loss.to(output[0]), *output[1:])
    own = getattr(output, "loss", None)
    if own is None:
        warnings.warn(
            "The router of `routing='kv_anchor'` learns by a loss that is added to the model's own, and this forward pass "
            "has computed none: prompts may find the wrong experts. Pass `labels`, or make edits with a LifelongEditor.",
            stacklevel=2,
        )
    else:
        output.loss = own + loss.to(own)
    return output
