"""When a prompt is routed, and how long its route lasts: once at prefill, then as long as the KV cache of its generation."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
from torch import nn

from .forward_pass import CacheState, Routes, cache_in, columns_in, first_tensor, token_labels, with_loss


# The routes of the forward pass that is running. A context variable, so that threads that generate on one model at the same
# time do not see each other's.
_running: ContextVar[tuple[Routes | None, CacheState | None]] = ContextVar("lemoe_running", default=(None, None))
# The routes of a whole call of `generate`, or those that an editor in training imposes.
_pinned: ContextVar[Pinned | None] = ContextVar("lemoe_pinned", default=None)


@dataclass
class Pinned:
    """
    Routes that hold for every forward pass, and how many columns of the prompt they were computed from.

    A cache keeps no more of them than their `mark`: it may be copied, or saved, and the model is not to go with it.
    """

    context: RoutingContext
    routes: Routes
    columns: int = 0
    mark: object = field(default_factory=object)


class RoutingContext:
    """
    Routes every forward pass of a model, from hooks on its root module.

    A forward pass that starts a KV cache, or puts several tokens on one, is a prompt: it is routed from its tokens, and its
    routes are kept as an attribute of the cache. A pass of one token on a filled cache is decoding: it takes the routes
    that it finds there and computes none. Within `generate` the routes come from the whole prompt and hold for the call,
    with a cache or without.

    It is one plain object, shared by the hooks and by all layers, so that it is copied and pickled along with the model.
    """

    def __init__(self, root: nn.Module):
        self.layers: list[nn.Module] = []
        self.blocks: list[nn.Module] = []
        # For each adapter the modules whose inputs tell what a prompt asks for; the last is in the first layer with a bypass.
        self.taps: dict[str, list[nn.Module]] = {}
        self._traced: Routes | None = None
        self.handles = [
            root.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            root.register_forward_hook(self.after_forward, with_kwargs=True, always_call=True),
        ]

    @classmethod
    def of(cls, root: nn.Module) -> RoutingContext:
        """The context of a model; there is one, however many adapters are added."""
        for hook in root._forward_pre_hooks.values():
            owner = getattr(hook, "__self__", None)
            if isinstance(owner, cls):
                return owner
        return cls(root)

    def tap(self, adapter_name: str, blocks: list[nn.Module]) -> None:
        """Look at what enters these modules."""
        self.taps[adapter_name] = blocks
        for block in blocks:
            if self.before_block not in block._forward_pre_hooks.values():
                self.handles.append(block.register_forward_pre_hook(self.before_block, with_kwargs=True))

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    @property
    def routes(self) -> Routes:
        # Dynamo cannot trace writes to a context variable; within one traced graph a plain attribute is as good.
        return (self._traced if torch.compiler.is_compiling() else _running.get()[0]) or {}

    @routes.setter
    def routes(self, routes: Routes | None) -> None:
        if torch.compiler.is_compiling():
            self._traced = routes
        else:
            _running.set((routes, None))

    @contextmanager
    def pinned(self, routes: Routes, columns: int = 0):
        """Use these routes, of a prompt of so many columns, for every forward pass inside."""
        token = _pinned.set(Pinned(self, routes, columns))
        try:
            yield
        finally:
            _pinned.reset(token)

    @property
    def pinned_routes(self) -> Routes:
        """The routes that hold for every forward pass, within `pinned` or `generation`."""
        pinned = _pinned.get()
        return pinned.routes if pinned is not None and pinned.context is self else {}

    def generation(self, root: nn.Module, args: tuple, kwargs: dict):
        """Pin the routes of one call of `generate`, computed from its whole prompt."""
        inputs = dict(kwargs)
        inputs.setdefault("input_ids", args[0] if args else kwargs.get("inputs"))
        with torch.no_grad():  # as in `generate`: with gradients, a model in training mode would learn the prompt
            ids = self._prompt_ids(root, inputs)
            if ids is None:
                return self.pinned({})
            return self.pinned(self._compute(root, ids, inputs, is_whole=True), ids.shape[1])

    # ------------------------------------------------------------------------------------------------------------- hooks

    def before_forward(self, root: nn.Module, args: tuple, kwargs: dict) -> None:
        if root.training:
            # A checkpointed block runs again in the backward pass, when other prompts may have been routed since.
            for block in self.blocks:
                block.gradient_checkpointing = False
        cache = cache_in(kwargs)
        state = getattr(cache, "lemoe_state", None)
        inputs = kwargs if not args else {"input_ids": args[0], **kwargs}
        tokens = inputs.get("input_ids")
        tokens = inputs.get("inputs_embeds") if tokens is None else tokens
        if not hasattr(root, "get_input_embeddings"):  # no model of texts
            self.routes = {
                name: layer.route_all(name)
                for layer in self.layers
                for name in layer.lemoe_anchors
                if name in layer.active_adapters
            }
        elif tokens is None:
            self.routes = None
        elif inputs.get("state") is not None and tokens.shape[1] == 1:
            # RWKV hands its state on as a plain list, which keeps no routes: they are those of the call of `generate`.
            rows = tokens.shape[0]
            self.routes = {name: route and route.repeat(rows).final for name, route in self.pinned_routes.items()}
        elif state is not None and tokens.shape[1] == 1 and state.awaited <= 0:
            rows = tokens.shape[0]  # the caller may have repeated those of the cache
            self.routes = {name: route and route.repeat(rows).final for name, route in state.routes.items()}
            state.columns += 1
        else:
            self._prefill(root, inputs, tokens, cache, state)

    def _prefill(self, root, inputs, tokens, cache, state) -> None:
        rows, column = tokens.shape[0], columns_in(cache, state)
        pinned = None if torch.compiler.is_compiling() else _pinned.get()
        pinned = pinned if pinned is not None and pinned.context is self else None
        ids, awaited = None, 0
        if pinned is not None:
            awaited = pinned.columns - column - tokens.shape[1]
            if state is not None and state.pinned is pinned.mark:
                routes = state.routes
            else:
                routes = {name: route and route.repeat(rows) for name, route in pinned.routes.items()}
        else:
            ids = self._prompt_ids(root, inputs)
            if column and ids is not None:
                past = ids.new_full((rows, column), -1)
                if state is not None and state.ids is not None:
                    earlier_ids = state.ids[:, :column]
                    past[:, : earlier_ids.shape[1]] = earlier_ids.repeat_interleave(rows // len(earlier_ids), 0)
                ids = torch.cat([past, ids], 1)
            is_whole = token_labels(inputs) is not None
            routes = {} if ids is None else self._compute(root, ids, inputs, is_whole)
        if state is not None and state.routes is not routes:
            for name, earlier in state.routes.items():
                if earlier is not None and routes.get(name) is not None:
                    routes[name].resume(earlier.repeat(rows), column)
        self.routes = {name: route and route.at(column, tokens.shape[1]) for name, route in routes.items()}
        state = CacheState(routes, ids, column + tokens.shape[1], awaited, pinned and pinned.mark)
        if cache is not None:
            cache.lemoe_state = state
        elif not torch.compiler.is_compiling():
            _running.set((self.routes, state))

    def after_forward(self, root: nn.Module, args: tuple, kwargs: dict, output):
        """Keep the routes with a cache that the forward pass has made by itself, and add the loss of routers that learn."""
        cache = cache_in(output)
        if not torch.compiler.is_compiling() and _running.get()[1] is not None and cache is not None:
            cache.lemoe_state = _running.get()[1]
        losses = [route.loss for route in self.routes.values() if route is not None and route.loss is not None]
        self.routes = None
        if output is None:  # the forward pass has failed
            return None
        for loss in losses:
            output = with_loss(output, loss, has_labels=kwargs.get("labels") is not None)
        return output

    def before_block(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        """Record what enters a module, and find out at the last one what the prompts ask for."""
        if torch.compiler.is_compiling():
            return
        for name, route in self.routes.items():
            taps = self.taps.get(name, [])
            if route is not None and route.candidates is not None and any(block is tap for tap in taps):
                route.candidates.hidden.append(first_tensor(args, kwargs))
                if block is taps[-1]:
                    lead = next(layer for layer in self.layers if name in layer.lemoe_relations)
                    route.decide(route.candidates, lead.lemoe_relations[name])

    # ----------------------------------------------------------------------------------------------------------- routing

    def _prompt_ids(self, root: nn.Module, inputs: dict) -> torch.Tensor | None:
        """Tokens of shape `(b, t)`, -1 where there is padding or a label, -2 for an embedding of no known token."""
        ids = inputs.get("input_ids")
        if ids is None:
            if inputs.get("inputs_embeds") is None:
                return None
            ids = self._ids_of(inputs["inputs_embeds"], root.get_input_embeddings())
        ids = ids.long()
        mask, labels = inputs.get("attention_mask"), token_labels(inputs)
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            ids = ids.masked_fill(mask[:, -ids.shape[1] :].to(ids.device) == 0, -1)
        if labels is not None:
            ids = ids.masked_fill(labels.to(ids.device) != -100, -1)
        return ids

    def _ids_of(self, embeds: torch.Tensor, embedding: nn.Module) -> torch.Tensor:
        """Tokens of given embeddings; -2 for those of no token, such as soft prompts, and where nothing is routed."""
        if not any(len(anchors) for layer in self.layers for anchors in layer.lemoe_anchors.values()):
            return torch.full(embeds.shape[:2], -2, device=embeds.device)
        table = embedding(torch.arange(len(embedding.weight), device=embeds.device)).to(embeds.dtype)
        ids = []
        for some in embeds.flatten(0, 1).split(256):
            nearest = (some @ table.T - table.pow(2).sum(-1) / 2).argmax(-1)
            ids.append(torch.where((table[nearest] == some).all(-1), nearest, -2))
        return torch.cat(ids).view(embeds.shape[:2])

    def _compute(self, root: nn.Module, ids: torch.Tensor, inputs: dict, is_whole: bool) -> Routes:
        """Routes of prompts; `is_whole` says that they end where their tokens do, and hold nothing of an answer."""
        routes: Routes = {}
        for layer in self.layers:
            for name in layer.lemoe_anchors if not layer.disable_adapters else ():
                if name in layer.active_adapters and name not in routes:
                    route = layer.route(name, root, ids, inputs, is_whole)
                    if route is not None and route.final is None:
                        route.seal()
                    routes[name] = route
        return routes
