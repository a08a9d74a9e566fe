"""When a prompt is routed, and how long its route lasts: once at prefill, then as long as the KV cache of its generation."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from .relations import Relations, features_of


@dataclass
class Candidates:
    """
    Edits of the subjects that prompts name: an edit acts only where the prompt asks for what the edit is about.

    Axes: `b` batch, `s` slots of the route, `c` edits of one subject, `t` columns of the prompt, `k` as in [`Relations`].

    Args:
        relations ([`Relations`]): What tells.
        experts (`torch.Tensor` of shape `(b, s, c)`): The edits' experts.
        keys (`torch.Tensor` of shape `(b, s, c, k)`): What the edits are about.
        threshold (`torch.Tensor` of shape `(b, s, c)`): Lowest score of each; infinite where there is no edit.
        named_at (`torch.Tensor` of shape `(b, s)`): Column at which the subject ends.
        asked (`torch.Tensor` of shape `(b, s, t)`): Columns at which a question about the subject may end.
    """

    relations: Relations
    experts: torch.Tensor
    keys: torch.Tensor
    threshold: torch.Tensor
    named_at: torch.Tensor
    asked: torch.Tensor
    hidden: list[torch.Tensor] = field(default_factory=list)

    def repeat(self, times: int) -> Candidates:
        fields = ("experts", "keys", "threshold", "named_at", "asked")
        repeated = {name: getattr(self, name).repeat_interleave(times, 0) for name in fields}
        return replace(self, hidden=[], **repeated)


@dataclass
class Route:
    """
    Which experts act on which columns of a batch.

    Axes: `b` batch, `s` slots. Slots of a row that follow one another (nearest anchor) have disjoint columns; slots that
    are mixed (top-k of the KV anchors) share them.

    Args:
        experts (`torch.Tensor` of shape `(b, s)`): Index in the bank of committed experts, then in the open ones.
        gates (`torch.Tensor` of shape `(b, s)`): Weight of each expert, 0 where the row is deferred to the base model.
        start (`torch.Tensor` of shape `(b, s)`):
            First column on which the expert acts, counting padding and the cache; `ENDLESS` until the prompt asks for one
            of the `candidates`.
        end (`torch.Tensor` of shape `(b, s)`): First column on which it does not act any more.
        num_committed (`int`): Experts from this index on are open ones.
        uses_open (`bool`): Whether any slot holds an open expert.
        last_start (`int`): Largest `start`: beyond it nothing but the final slots acts.
        candidates ([`Candidates`], *optional*): Edits that act where they are asked for.
    """

    experts: torch.Tensor
    gates: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor
    num_committed: int = 0
    uses_open: bool = False
    last_start: int = 0
    candidates: Candidates | None = None
    column: int = 0
    final: Route | None = None

    ENDLESS = 2**31 - 1

    def gates_at(self, num_columns: int) -> torch.Tensor:
        """Gates of shape `(b, s, t)` for the `t` columns from `column` on."""
        if self.column > self.last_start:
            return self.gates[:, :, None].expand(-1, -1, num_columns)
        column = self.column + torch.arange(num_columns, device=self.gates.device)
        acts = (self.start[:, :, None] <= column) & (column < self.end[:, :, None])
        return self.gates[:, :, None] * acts

    def seal(self) -> None:
        """Keep aside what is left of the route when the prompt is over: the slots without an end."""
        lasts = self._lasts()
        self.final = replace(
            self,
            experts=self.experts[:, lasts],
            gates=self._final_gates(lasts),
            start=self.start[:, lasts],
            end=self.end[:, lasts],
            candidates=None,
            column=self.last_start + 1,
        )

    def _lasts(self) -> torch.Tensor:
        """Slots that may act when the prompt is over, of shape `(s,)`: any, as long as they may still be asked for."""
        lasts = (self.end == self.ENDLESS).any(0)
        return lasts if self.candidates is None else torch.ones_like(lasts)

    def _final_gates(self, lasts: torch.Tensor) -> torch.Tensor:
        return (self.gates * (self.end == self.ENDLESS) * (self.start < self.ENDLESS))[:, lasts]

    def decide(self) -> None:
        """
        Let each slot that waits take the edit that its prompt asks for, from the hidden states that were recorded.

        Of the edits of one subject, the one that is asked for first acts, and among several at one column the one with
        the highest score; so do those of several subjects that stand in one question.
        """
        candidates = self.candidates
        features = features_of(candidates.hidden)
        candidates.hidden.clear()
        asked = candidates.asked[:, :, self.column : self.column + features.shape[1]]
        asked = asked & (self.start == self.ENDLESS)[..., None]
        columns = asked.any(1).any(0).nonzero().flatten()  # of few of them the scores are needed
        embedded = candidates.relations.embed(features[:, columns.to(features.device)]).to(asked.device)
        score = candidates.relations.score(candidates.keys.flatten(1, 2), embedded).unflatten(1, (asked.shape[1], -1))
        score -= 1e-4 * torch.arange(score.shape[2], device=score.device)[:, None]  # of equals the first, the latest
        score = score.masked_fill(~asked[:, :, None, columns] | (score < candidates.threshold[..., None]), -torch.inf)
        score, best = score.max(2)
        if not len(columns) or not torch.isfinite(score).any():
            return
        column = torch.isfinite(score).long().argmax(-1)  # the first one
        score = score.gather(2, column[..., None])[..., 0]
        start = torch.where(torch.isfinite(score), self.column + columns[column], self.ENDLESS)
        beaten = (start[:, :, None] == start[:, None]) & (score[:, None] > score[:, :, None])
        start = start.masked_fill(beaten.any(-1), self.ENDLESS)
        opens = start < self.ENDLESS
        expert = candidates.experts.gather(2, best.gather(2, column[..., None]))[..., 0]
        # In place: the route that is kept with the cache, and what is left of it for decoding, are to know.
        self.experts.copy_(torch.where(opens, expert, self.experts))
        self.start.copy_(torch.where(opens, start, self.start))
        later = torch.where(start[:, None] > self.start[:, :, None], start[:, None], self.ENDLESS).amin(-1)
        self.end.copy_(torch.minimum(self.end, later))
        self._tell_final()

    def _tell_final(self) -> None:
        if self.final is not None:
            lasts = self._lasts()
            self.final.experts.copy_(self.experts[:, lasts])
            self.final.gates.copy_(self._final_gates(lasts))

    def resume(self, earlier: Route) -> None:
        """Go on with what an earlier part of the same text has asked for."""
        mine, theirs = self.candidates, earlier.candidates
        if mine is None or theirs is None:
            return
        same = (mine.named_at[:, :, None] == theirs.named_at[:, None]) & (earlier.start < self.ENDLESS)[:, None]
        found, slot = (same & (self.start == self.ENDLESS)[..., None]).max(-1)
        for name in ("experts", "start", "end"):
            own, known = getattr(self, name), getattr(earlier, name)
            own.copy_(torch.where(found, known.gather(1, slot), own))
        self._tell_final()

    def at(self, column: int) -> Route:
        """The route as it applies from `column` on."""
        return self.final if column > self.last_start and self.final is not None else replace(self, column=column)

    def repeat(self, batch: int) -> Route:
        """The route for a batch in which `generate` has repeated every row for its beams or return sequences."""
        times = batch // self.experts.shape[0]
        if times == 1:
            return self
        fields = ("experts", "gates", "start", "end")
        repeated = {name: getattr(self, name).repeat_interleave(times, 0) for name in fields}
        route = replace(self, candidates=self.candidates and self.candidates.repeat(times), **repeated)
        route.seal()
        return route


Routes = dict  # adapter name -> Route, or None where every row is deferred

# The routes of the forward pass that is running. A context variable, so that threads that generate on one model at the same
# time do not see each other's.
_running: ContextVar[tuple[Routes | None, CacheState | None]] = ContextVar("lemoe_running", default=(None, None))
# The routes of a whole call of `generate`, or those that an editor in training imposes.
_pinned: ContextVar[tuple[RoutingContext, Routes] | None] = ContextVar("lemoe_pinned", default=None)


@dataclass
class CacheState:
    """What is kept beside a KV cache: the routes of its rows, and the tokens of the prompt so far (-1 for others)."""

    routes: Routes
    ids: torch.Tensor | None
    columns: int  # how many have been seen, as far as the cache does not count them itself


def cache_in(holder) -> object | None:
    """The cache among the arguments of a forward pass, or in its output; state-space models call theirs otherwise."""
    for name in ("past_key_values", "cache_params"):
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
        tapped = [block for known in self.taps.values() for block in known]
        self.taps[adapter_name] = blocks
        for block in blocks:
            if not any(block is other for other in tapped):
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
    def pinned(self, routes: Routes):
        """Use these routes for every forward pass inside."""
        token = _pinned.set((self, routes))
        try:
            yield
        finally:
            _pinned.reset(token)

    @property
    def pinned_routes(self) -> Routes:
        """The routes that hold for every forward pass, within `pinned` or `generation`."""
        pinned = _pinned.get()
        return pinned[1] if pinned is not None and pinned[0] is self else {}

    def generation(self, root: nn.Module, args: tuple, kwargs: dict):
        """Pin the routes of one call of `generate`, computed from its whole prompt."""
        inputs = dict(kwargs)
        inputs.setdefault("input_ids", args[0] if args else kwargs.get("inputs"))
        with torch.no_grad():  # as in `generate`: with gradients, a model in training mode would learn the prompt
            ids = self._prompt_ids(root, inputs)
            return self.pinned({} if ids is None else self._compute(root, ids, inputs, is_whole=True))

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
        if tokens is None:
            self.routes = None
        elif state is not None and tokens.shape[1] == 1:
            self.routes = {name: route and route.final for name, route in state.routes.items()}
            if cache is kwargs.get("cache_params"):
                state.columns += 1
        else:
            self._prefill(root, inputs, tokens, cache, state)

    def _prefill(self, root, inputs, tokens, cache, state) -> None:
        column = columns_in(cache, state)
        pinned = None if torch.compiler.is_compiling() else _pinned.get()
        ids = None
        if pinned is not None and pinned[0] is self:
            routes = {name: route and route.repeat(tokens.shape[0]) for name, route in pinned[1].items()}
        else:
            ids = self._prompt_ids(root, inputs)
            if column and ids is not None:
                past = ids.new_full((ids.shape[0], column), -1)
                if state is not None and state.ids is not None:
                    past[:, : state.ids.shape[1]] = state.ids[:, :column]
                ids = torch.cat([past, ids], 1)
            is_whole = inputs.get("labels") is not None
            routes = {} if ids is None else self._compute(root, ids, inputs, is_whole)
            for name, route in (state.routes if state is not None else {}).items():
                if route is not None and routes.get(name) is not None:
                    routes[name].resume(route)
        self.routes = {name: route and route.at(column) for name, route in routes.items()}
        state = CacheState(routes, ids, column + tokens.shape[1])
        if cache is not None:
            cache.lemoe_state = state
        elif not torch.compiler.is_compiling():
            _running.set((self.routes, state))

    def after_forward(self, root: nn.Module, args: tuple, kwargs: dict, output) -> None:
        """Keep the routes with a cache that the forward pass has made by itself."""
        cache = cache_in(output)
        if not torch.compiler.is_compiling() and _running.get()[1] is not None and cache is not None:
            cache.lemoe_state = _running.get()[1]
        self.routes = None

    def before_block(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        """Record what enters a module, and find out at the last one what the prompts ask for."""
        if torch.compiler.is_compiling():
            return
        for name, route in self.routes.items():
            taps = self.taps.get(name, [])
            if route is not None and route.candidates is not None and any(block is tap for tap in taps):
                route.candidates.hidden.append(args[0] if args else next(iter(kwargs.values())))
                if block is taps[-1]:
                    route.decide()

    # ----------------------------------------------------------------------------------------------------------- routing

    def _prompt_ids(self, root: nn.Module, inputs: dict) -> torch.Tensor | None:
        """Tokens of shape `(b, t)`, -1 where there is padding or a label."""
        ids = inputs.get("input_ids")
        if ids is None:
            if inputs.get("inputs_embeds") is None:
                return None
            ids = self._ids_of(inputs["inputs_embeds"], root.get_input_embeddings())
        ids = ids.long()
        mask, labels = inputs.get("attention_mask"), inputs.get("labels")
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            ids = ids.masked_fill(mask[:, -ids.shape[1] :].to(ids.device) == 0, -1)
        if labels is not None:
            ids = ids.masked_fill(labels.to(ids.device) != -100, -1)
        return ids

    def _ids_of(self, embeds: torch.Tensor, embedding: nn.Module) -> torch.Tensor:
        """Tokens of given embeddings, as far as any anchor holds them; -1 for the rest, such as soft prompts."""
        anchors = [anchor.tokens for layer in self.layers for anchor in layer.lemoe_anchors.values()]
        vocabulary = torch.cat(anchors).unique().long() if anchors else torch.empty(0, dtype=torch.long)
        if not len(vocabulary):
            return torch.full(embeds.shape[:2], -1, device=embeds.device)
        vocabulary = vocabulary.to(embeds.device)
        table = embedding(vocabulary).to(embeds.dtype)
        nearest = (embeds @ table.T - table.pow(2).sum(-1) / 2).argmax(-1)
        return torch.where((table[nearest] == embeds).all(-1), vocabulary[nearest], -1)

    def _compute(self, root: nn.Module, ids: torch.Tensor, inputs: dict, is_whole: bool) -> Routes:
        """Routes of prompts; `is_whole` says that they end where their tokens do, and hold nothing of an answer."""
        routes: Routes = {}
        for layer in self.layers:
            for name in layer.lemoe_anchors if not layer.disable_adapters else ():
                if name in layer.active_adapters and name not in routes:
                    route = layer.route(name, root, ids, inputs, is_whole)
                    if route is not None:
                        route.seal()
                    routes[name] = route
        return routes
