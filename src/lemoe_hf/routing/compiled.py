"""
Routing beside a compiled graph.

Which edit acts is found out in Python, from tokens and from what was said before, and changes from pass to pass: it cannot be
a part of a graph. In a graph stand three operators in its place, which the compiler does not look into. They run the very code
that runs without a compiler, whenever the graph does. A number is handed from one to the next, so that they keep their order.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch


# What operators, which take numbers and tensors only, are told by number. Nothing is kept alive by it.
_known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def number_of(what: Any) -> int:
    """Make something known to operators, and tell its number."""
    number = next(_numbers)
    _known[number] = what
    return number


@torch.library.custom_op("lemoe::begin", mutates_args=())
def begin(
    context: int,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    labels: torch.Tensor | None,
    kept: torch.Tensor | None,
) -> torch.Tensor:
    """Read the texts of a forward pass; `kept` is the number of what is kept of them with the cache."""
    inputs = {"attention_mask": attention_mask, "position_ids": position_ids, "labels": labels}
    cache = None if kept is None else _known[int(kept)].cache
    _known[context].begin_compiled(tokens, {name: value for name, value in inputs.items() if value is not None}, cache)
    return torch.zeros((), dtype=torch.long, device=tokens.device)


@begin.register_fake
def _(context, tokens, attention_mask, position_ids, labels, kept):
    return torch.empty((), dtype=torch.long, device=tokens.device)


@torch.library.custom_op("lemoe::look", mutates_args=())
def look(context: int, tap: int, hidden: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Record what enters a module that is looked at, which is the one with this number."""
    found = _known[context]
    found.look(found.looked_at[tap], hidden)
    return order.clone()


@look.register_fake
def _(context, tap, hidden, order):
    return torch.empty_like(order)


@torch.library.custom_op("lemoe::act", mutates_args=())
def act(context: int, layer: int, x: torch.Tensor, hidden: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Add what experts make of the inputs of a layer with a bypass to what came out of it."""
    return _known[context].act_compiled(layer, x, hidden).clone()


@act.register_fake
def _(context, layer, x, hidden, order):
    return torch.empty_like(hidden)
