"""Routes every forward pass of a model in transformers: which texts are in it, and what of them is remembered where."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn

from ..structure import CACHE_NAMES, streams_of, text_config
from .cached import CachedTexts, cache_in
from .compiled import act, begin, look, number_of
from .continuous_batching import is_paged, managed, pieces_of_requests, text_of
from .embedded import tokens_of
from .frame import Frame, Running, check_known, take_back, tell_ends
from .layout import pieces_of
from .passes import Batch, Pass, Places
from .text import Text
from .versions import Versions, View


# Of the forward pass that is running. A context variable, so that threads that generate on one model at the same time do not
# see each other's.
_running: ContextVar[Running | None] = ContextVar("lemoe_running", default=None)
# Of the call of `generate` that is running.
_frame: ContextVar[Frame | None] = ContextVar("lemoe_frame", default=None)
# What acts in every forward pass, imposed by an editor in training.
_imposed: ContextVar[tuple[RoutingContext, dict[str, Places]] | None] = ContextVar("lemoe_imposed", default=None)


class RoutingContext:
    """
    Routes every forward pass of a model, from hooks on its root module and on the modules whose inputs tell what is asked.

    The texts of a batch are read from its tokens. Where a KV cache goes on, they are kept with it. `generate` tells where its
    prompts end; labels do so too.

    It is one plain object, shared by the hooks and by all layers, so that it is copied and pickled along with the model.
    """

    def __init__(self, root: nn.Module):
        self.root, self.streams = root, streams_of(root)
        self.parameters = list(inspect.signature(root.forward).parameters)
        self.layers: list[nn.Module] = []
        self.versions = Versions()
        self.blocks: list[nn.Module] = []
        # For each adapter the modules whose inputs tell what a prompt asks for; the last is in the first layer with a bypass.
        self.taps: dict[str, list[nn.Module]] = {}
        self.looked_at: list[nn.Module] = []
        # For each adapter with a mixture, the module whose input chooses in it, and its layers in the order of the model.
        self.queried: dict[str, nn.Module] = {}
        self.in_order: dict[str, list[nn.Module]] = {}
        # For operators in a compiled graph: by which number they know this object, and what keeps them in order.
        self.number = number_of(self)
        self._order: torch.Tensor | None = None
        self.handles = [
            root.register_forward_pre_hook(self.before_forward, with_kwargs=True),
            root.register_forward_hook(self.after_forward, with_kwargs=True, always_call=True),
        ]
        if hasattr(root, "init_continuous_batching"):
            root.init_continuous_batching = partial(managed, root)

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
        self.look_at(blocks)

    def look_at(self, blocks: list[nn.Module]) -> None:
        """Let passes look at what enters these modules."""
        for block in blocks:
            if self.before_block not in block._forward_pre_hooks.values():
                block.lemoe_tap = len(self.looked_at)
                self.looked_at.append(block)
                self.handles.append(block.register_forward_pre_hook(self.before_block, with_kwargs=True))

    def remove(self, root: nn.Module) -> None:
        vars(root).pop("init_continuous_batching", None)
        for handle in self.handles:
            handle.remove()

    # ------------------------------------------------------------------------------------------------------------ frames

    @contextmanager
    def imposed(self, acting: dict[str, Places]):
        """Let exactly this act in every forward pass inside, of each adapter; nothing where there is none."""
        token = _imposed.set((self, acting))
        try:
            yield
        finally:
            _imposed.reset(token)

    @contextmanager
    def generation(self, root: nn.Module, args: tuple, kwargs: dict):
        """Tell the forward passes of one call of `generate` where its prompts end."""
        inputs = dict(kwargs)
        inputs.setdefault("input_ids", args[0] if args else kwargs.get("inputs"))
        with torch.no_grad():
            prompt = self._tokens(root, inputs)
        mask = inputs.get("attention_mask")
        if prompt is not None and isinstance(mask, torch.Tensor) and mask.dim() == 2:
            prompt = prompt.masked_fill(mask[:, -prompt.shape[1] :].to(prompt.device) == 0, -1)
        if prompt is not None:
            take_back(cache_in(kwargs), prompt.shape[1])
        frame = Frame(self, prompt)
        token = _frame.set(frame)
        try:
            with self.versions.seeing(self.versions.latest(self.layers)):
                yield frame
        finally:
            _frame.reset(token)

    def view(self) -> View | None:
        """The version of what adapters have stored that this thread sees, where that is not the latest."""
        if torch.compiler.is_compiling():  # the operators in a graph find it out when they run
            return None
        running = _running.get()
        return self.versions.view() or (None if running is None or running.context is not self else running.view)

    @property
    def is_imposed(self) -> bool:
        """Whether an editor has imposed what acts in the passes of this thread."""
        imposed = _imposed.get()
        return imposed is not None and imposed[0] is self

    def acting(self, adapter_name: str) -> Places | None:
        """What acts in the forward pass that is running."""
        running = _running.get()
        if running is None:
            return None
        if adapter_name in running.passes:
            return running.passes[adapter_name].acting()
        return running.known.get(adapter_name)

    # ------------------------------------------------------------------------------------------------------------- hooks

    def before_forward(self, root: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs = kwargs if not args else dict(zip(self.parameters, args, strict=False)) | kwargs
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            self._begin_traced(inputs)
            return
        self._order = None
        if root.training:
            # A checkpointed block runs again in the backward pass, when other prompts may have been routed since.
            for block in self.blocks:
                block.gradient_checkpointing = False
        _running.set(self._begun(root, inputs))

    def after_forward(self, root: nn.Module, args: tuple, kwargs: dict, output):
        """Keep the texts with a cache that the forward pass has made by itself, and add the loss of routers that learn."""
        if torch.compiler.is_compiling():
            return None
        running = _running.get()
        _running.set(None)
        if output is None or running is None:  # the forward pass has failed
            return None
        cache = cache_in(output)
        if running.kept is not None and cache is not None:
            running.kept.attach(cache)
        learned = [of_adapter.acting() for of_adapter in running.passes.values() if of_adapter.learns]
        for acting in [*running.known.values(), *learned]:
            if acting is not None and acting.loss is not None:
                output = with_loss(output, acting.loss, has_labels=kwargs.get("labels") is not None)
        return output

    def before_block(self, block: nn.Module, args: tuple, kwargs: dict) -> None:
        """Look at what enters a module."""
        hidden = first_tensor(args, kwargs)
        if torch.compiler.is_compiling():
            self._order = look(self.number, block.lemoe_tap, hidden, self._in_order(hidden))
        else:
            self.look(block, hidden)

    @torch.compiler.disable
    def look(self, block: nn.Module, hidden: torch.Tensor) -> None:
        """Record what enters a module, and find out at the last one what the texts ask for."""
        running = _running.get()
        for name, of_adapter in running.passes.items() if running is not None else ():
            taps = self.taps.get(name, []) if of_adapter.taps is None else of_adapter.taps
            if of_adapter.waits and any(block is tap for tap in taps):
                of_adapter.tap(hidden)
                if block is taps[-1]:
                    of_adapter.decide(running.embed)

    # ---------------------------------------------------------------------------------------------------------- compiled

    def _begin_traced(self, inputs: dict) -> None:
        if torch.compiler.is_exporting() or torch.jit.is_tracing():
            raise RuntimeError(
                "A model with edits cannot be exported or traced: which edit acts is found out in Python, for each text anew. "
                "Export the base model (`model.unload()`), or serve the edited one with `generate`."
            )
        ids, cache = inputs.get("input_ids"), cache_in(inputs)
        kept = getattr(cache, "lemoe_texts", None)
        if ids is None or (cache is not None and kept is None):
            what = "`inputs_embeds`" if ids is None else "a cache that this model has not filled yet"
            raise RuntimeError(
                f"A compiled model with edits cannot read its texts from {what}. Run the prompt without the compiler, and "
                f"compile the steps behind it, as `generate` does."
            )
        known = (inputs.get(name) for name in ("attention_mask", "position_ids", "labels"))
        self._order = begin(self.number, ids, *known, None if kept is None else kept.number)

    def begin_compiled(self, ids: torch.Tensor, inputs: dict, cache) -> None:
        """What `before_forward` does, as an operator in a graph calls it."""
        inputs = {**inputs, "input_ids": ids} | ({} if cache is None else {CACHE_NAMES[0]: cache})
        running = self._begun(self.root, inputs)
        running.is_traced = True
        _running.set(running)

    @torch.compiler.disable
    def act_compiled(self, place: int, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What a layer with a bypass does, as an operator in a graph calls it."""
        if _running.get() is None:
            raise RuntimeError(
                "A compiled part of a model with edits runs by itself: which texts it is given cannot be told. Call the "
                "model, not a part of it."
            )
        edited = self.layers[place].edited(x, hidden)
        if _running.get().is_traced and place == len(self.layers) - 1:
            _running.set(None)
        return edited

    def in_graph(self, layer: nn.Module, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What stands for a layer's bypass in a graph."""
        if any(layer.learns(name) for name in layer.active_adapters if layer.has(name)):
            raise RuntimeError(
                "Experts cannot be trained in a compiled model: what they are trained on is found out in Python. Train "
                "without the compiler, or call the model under `torch.no_grad()`."
            )
        return act(self.number, layer.place, x, hidden, self._in_order(hidden))

    def _in_order(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), dtype=torch.long, device=hidden.device) if self._order is None else self._order

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name not in ("number", "_order")}

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state, number=number_of(self), _order=None)

    # ----------------------------------------------------------------------------------------------------------- routing

    def _leads(self) -> Iterable[tuple[str, Any]]:
        """The active adapters, and of each the layer that holds its anchors."""
        for layer in self.layers:
            yield from ((name, layer) for name in layer.active_adapters if layer.leads(name))

    @torch.compiler.disable
    def _begun(self, root: nn.Module, inputs: dict) -> Running:
        if self.is_imposed:
            return Running(known=_imposed.get()[1])
        view = None if self.versions.view() is not None else self.versions.latest(self.layers)
        with self.versions.seeing(view or self.versions.view()):
            running = self._routed(root, inputs)
        running.context, running.view = self, view
        return running

    def _routed(self, root: nn.Module, inputs: dict) -> Running:
        leads = [(name, layer) for name, layer in self._leads() if not layer.disable_adapters]
        if not hasattr(root, "get_input_embeddings"):  # no model of texts
            return Running(known={name: layer.act_on_all(name) for name, layer in leads})
        leads = [(name, layer) for name, layer in leads if layer.may_act(name)]
        ids = self._tokens(root, inputs) if leads else None
        if ids is None:
            unseen = getattr(cache_in(inputs), "lemoe_texts", None)
            if unseen is not None:  # what goes by with the adapters off is not known later
                unseen.seen.clear()
            return Running()
        cache, running = cache_in(inputs), Running(root.get_input_embeddings())
        if cache is not None and is_paged(cache):
            pieces = pieces_of_requests(root, ids, cache)
            for name, layer in leads:
                vocabulary = layer.vocabulary(name)
                texts, firsts = zip(
                    *(text_of(piece.request, name, piece, vocabulary) for piece in pieces), strict=True
                )
                self._route(running, root, name, layer, Batch(pieces, list(texts), list(firsts), ids, {}))
            return running
        frame = _frame.get()
        frame = frame if frame is not None and frame.context is self else None
        kept = self._kept(frame, inputs, cache, ids)
        keeps_cache = cache is not None or inputs.get("use_cache", keeps_by_default(root)) is not False
        if frame is not None:
            inputs = inputs | {"attention_mask": frame.mask_of(inputs.get("attention_mask"), ids, kept.columns)}
        pieces = pieces_of(ids, inputs, keeps_cache)
        if [piece.row for piece in pieces] == list(range(len(ids))):
            running.kept = kept
        elif kept.columns:
            raise ValueError(
                "A row holds several texts behind a cache that holds one: which of them goes on cannot be told. Pass a row "
                "for each text."
            )
        for name, layer in leads:
            texts = self._texts(name, layer, kept, frame, len(pieces))
            firsts = [len(text) for text in texts]
            for piece, text, first in zip(pieces, texts, firsts, strict=True):
                text.read(piece.tokens, [kept.columns + place for place in piece.places], layer.vocabulary(name))
                tell_ends(text, piece, first, frame, kept.columns + ids.shape[1])
            kept.seen[name] = kept.columns + ids.shape[1]
            prompt = None if frame is None else frame.prompt
            self._route(running, root, name, layer, Batch(pieces, texts, firsts, ids, inputs, prompt))
        kept.columns += ids.shape[1]
        if frame is not None:
            frame.passes, frame.last = frame.passes + 1, running
        return running

    def _route(self, running: Running, root: nn.Module, name: str, layer, batch: Batch) -> None:
        """Let an adapter find out what is to act in a pass."""
        routed = layer.route(name, root, batch)
        if isinstance(routed, Pass):
            running.passes[name] = routed
        elif routed is not None:
            running.known[name] = routed

    def _kept(self, frame: Frame | None, inputs: dict, cache, ids: torch.Tensor) -> CachedTexts:
        """What is kept of the texts that this pass goes on with."""
        if cache is None and frame is not None and frame.passes:
            if inputs.get("state") is not None:  # RWKV hands its state on as a plain list, which keeps nothing
                return frame.kept
            if ids.shape[1] < frame.columns:
                raise ValueError(
                    f"`generate` goes on with {ids.shape[1]} tokens behind a prompt of {frame.columns}, and no cache is among "
                    f"what the model was given ({', '.join(inputs)}): which texts go on cannot be told. Pass "
                    f"`use_cache=False`, or update lemoe_hf."
                )
        kept = getattr(cache, "lemoe_texts", None) or CachedTexts()
        if cache is not None:
            columns = kept.length_in(cache)
            if columns < kept.columns:
                kept.cut(columns)
            elif columns > kept.columns:
                kept = CachedTexts(columns)
            kept.attach(cache)
        elif frame is not None:
            frame.kept = kept
        for texts in kept.texts.values():
            if len(texts) != len(ids):
                if len(ids) % len(texts):
                    raise ValueError(f"The cache holds {len(texts)} rows, and {len(ids)} go on.")
                kept.repeat(len(ids) // len(texts))
                break
        return kept

    def _texts(self, name: str, layer, kept: CachedTexts, frame: Frame | None, num: int) -> list[Text]:
        """The texts of a batch so far."""
        if name not in kept.texts or kept.seen.get(name, 0) != kept.columns:
            kept.texts[name] = [Text() for _ in range(num)]
            if kept.columns:
                check_known(frame, kept.columns)
                for row, text in enumerate(kept.texts[name]):
                    # Columns that went by unseen, as yet or by this adapter.
                    tokens = frame.prompt[row * len(frame.prompt) // num, : kept.columns].tolist()
                    places = [place for place, token in enumerate(tokens) if token != -1]
                    text.read([tokens[place] for place in places], places, layer.vocabulary(name))
        return kept.texts[name]

    def _tokens(self, root: nn.Module, inputs: dict) -> torch.Tensor | None:
        return tokens_of(root, inputs, may_match=any(len(layer.anchors(name)) for name, layer in self._leads()))


def keeps_by_default(root: nn.Module) -> bool:
    """Whether a model makes a cache if it is not told whether to."""
    return bool(getattr(text_config(root), "use_cache", False))


def first_tensor(args: tuple, kwargs: dict) -> torch.Tensor:
    """The hidden states among the arguments of a module."""
    return next(value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor))


def with_loss(output, loss: torch.Tensor, has_labels: bool):
    """The output of a model, with another loss added to its own, as mixtures of experts add that of their routers."""
    if isinstance(output, tuple) and has_labels:
        return (output[0] + loss.to(output[0]), *output[1:])
    own = getattr(output, "loss", None)
    if own is None:
        warnings.warn(
            "A router (of `routing='kv_anchor'`, or with a `balance_loss`) learns by a loss that is added to the model's own, "
            "and this forward pass has computed none: prompts may find the wrong experts. Pass `labels`, or make edits with a "
            "LifelongEditor.",
            stacklevel=2,
        )
    else:
        output.loss = own + loss.to(own)
    return output
