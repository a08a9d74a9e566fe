"""Continuous batching of transformers: the requests that share one row of tokens, and what is kept of each."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import nn

from .layout import Piece
from .text import Text
from .vocabulary import Vocabulary


# The manager that drives each model. It runs threads, and cannot be copied along with the model.
_managers: weakref.WeakKeyDictionary[nn.Module, Any] = weakref.WeakKeyDictionary()


def managed(root: Any, *args: Any, **kwargs: Any) -> Any:
    """
    `init_continuous_batching` of a model, in whose place it stands: the requests of the manager can be found later.

    What an edit does to keys and values depends on where the prompt ends, and what a prompt asks for is told by hidden states
    that a shared block does not bring: requests share no blocks. Every pass is routed in Python: there are no graphs, and no
    pass is prepared while another one runs.
    """
    manager = type(root).init_continuous_batching(root, *args, **kwargs)
    config = manager.continuous_batching_config
    config.allow_block_sharing = config.use_cuda_graph = config.use_async_batching = False
    _managers[root] = weakref.ref(manager)
    return manager


def is_paged(cache: Any) -> bool:
    return hasattr(cache, "cache_allocators")


def pieces_of_requests(root: nn.Module, ids: torch.Tensor, cache: Any) -> list[Piece]:
    """
    The requests of a forward pass over a paged cache.

    Raises:
        ValueError: If it is not known which requests those are.
    """
    manager = _managers.get(root, lambda: None)()
    processor = getattr(manager, "batch_processor", None)
    if processor is None or getattr(cache, "use_prefix_sharing", False):
        raise ValueError(
            "This forward pass runs over a paged cache, and which requests it holds cannot be told. Start continuous batching "
            "by `generate_batch` or `init_continuous_batching` of the edited model; if a manager was made before the "
            "adapter was, call `destroy_cached_continuous_batching_manager()` first."
        )
    tokens = ids[0].tolist()
    pieces, first = [], 0
    for future in processor.inputs_and_outputs.requests_in_batch:
        places = list(range(first, first + future.query_length))
        pieces.append(Piece(0, places, [tokens[place] for place in places], request=future.state))
        first += future.query_length
    return pieces


def text_of(request: Any, adapter_name: str, piece: Piece, vocabulary: Vocabulary) -> tuple[Text, int]:
    """The text of a request with the tokens of this pass, and its first new column. It is kept with the request."""
    texts: dict[str, Text] = vars(request).setdefault("lemoe_texts", {})
    first = request.position_offset - len(piece.tokens)
    text = texts.get(adapter_name)
    if text is None or len(text) != first:
        # A request that was put off comes again as a new one, and what it had said as a part of its prompt.
        prompt = request._true_initial_tokens or len(request.initial_tokens)
        text = texts[adapter_name] = Text(ends={prompt - 1}, prompt=prompt)
        earlier = (request.initial_tokens + request.generated_tokens)[:first]
        text.read(earlier, range(first), vocabulary)
    text.read(piece.tokens, range(first, first + len(piece.tokens)), vocabulary)
    return text, first
