"""Train what lies above a frozen trunk at the price of what lies above it.

All that stands below the bypass is frozen, and so is every token before the one from which an expert acts. Both are
computed once: the hidden states that enter the bypassed layer, and the keys and values of the earlier tokens. A
training step then runs the upper layers only, on the last tokens only, and computes logits only where there is a
target.
"""

from __future__ import annotations

import copy
import inspect
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .. import structure
from ..routing.context import Route, RoutingContext
from ..tuners.lemoe.layer import LEMoELayer


@dataclass(frozen=True)
class Sample:
    """
    One text to train on.

    Args:
        prompt (`list[int]`), target (`list[int]`): Tokens.
        start (`int`): Column from which on the expert acts, within the prompt.
        expert (`int`): Which of the experts in training learns it.
    """

    prompt: list[int]
    target: list[int]
    start: int
    expert: int


def batch_of(sequences: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded tokens and their mask, both of shape `(b, t)`."""
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [pad] * (width - len(sequence)) for sequence in sequences], device=device)
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences], device=device)
    return ids, mask


class CachedBatch:
    """
    Samples with everything frozen computed, ready for training steps.

    Axes: `b` samples, `t` columns of a sample, `c` columns from its `start` on, `n` target tokens of all samples.

    Args:
        root (`nn.Module`): The model, with its LEMoE layers.
        context ([`RoutingContext`]): Of that model.
        samples (`list` of [`Sample`]): What to train on.
        pad (`int`): The padding token.
        reuse (`bool`): Reuse the keys and values of earlier tokens. Without it, every step runs whole sequences
            through the whole model: slow, and right for any architecture.
    """

    def __init__(self, root: nn.Module, context: RoutingContext, samples: list[Sample], pad: int, reuse: bool = True):
        self.root, self.context, self.reuse = root, context, reuse
        device = root.get_input_embeddings().weight.device
        ids, mask = batch_of([sample.prompt + sample.target for sample in samples], pad, device)
        length = mask.sum(1)
        self.start = torch.tensor([sample.start for sample in samples], device=device)
        self.expert = torch.tensor([sample.expert for sample in samples], device=device)
        prompt = torch.tensor([len(sample.prompt) for sample in samples], device=device)
        # Columns from the start on, except the last token, which predicts nothing.
        width = int((length - 1 - self.start).max()) if reuse else ids.shape[1]
        column = (self.start if reuse else torch.zeros_like(self.start))[:, None] + torch.arange(width, device=device)
        self.position = column.clamp(max=ids.shape[1] - 1)
        valid = column < length[:, None] - 1
        self.is_target = valid & (column >= prompt[:, None] - 1)
        following = ids.gather(1, (self.position + 1).clamp(max=ids.shape[1] - 1))
        self.labels = following[self.is_target]
        self.row = torch.arange(len(samples), device=device)[:, None].expand_as(following)[self.is_target]
        self.ids = ids.gather(1, self.position)

        self.blocks = self._frozen_blocks() if reuse else []
        recorded: dict[str, object] = {}
        with ExitStack() as stack:
            if self.blocks:
                record = self.blocks[-1].register_forward_hook(
                    lambda module, args, output: recorded.update(output=output)
                )
                stack.callback(record.remove)
            stack.enter_context(torch.no_grad())
            stack.enter_context(context.pinned({}))
            output = root(input_ids=ids, attention_mask=mask, use_cache=reuse)
        columns = self.position[self.is_target]
        self.base_logits = output.logits[self.row, columns]
        self.cache, self.mask, self.hidden = None, mask if not reuse else None, None
        self.anchors: torch.Tensor | None = None  # of shape (b, d), where a KV router trains along
        if reuse:
            # State-space models have none of this name; `reusable_columns` then says 0.
            self.cache = getattr(output, "past_key_values", None)
            if self.cache is not None:
                del self.cache.lemoe_state  # a step of one token would be taken for decoding
            before = torch.arange(ids.shape[1], device=device) < self.start[:, None]
            self.mask = torch.cat([before, valid], 1).long()
        if self.blocks:
            self.hidden = self._pick(recorded["output"])

    @property
    def num_targets(self) -> torch.Tensor:
        """Target tokens of each sample, of shape `(b,)`."""
        return torch.bincount(self.row, minlength=len(self.expert))

    def _frozen_blocks(self) -> list[nn.Module]:
        """The layers below the lowest bypass."""
        _, stack = structure.find_stack(self.root)
        blocks = []
        for block in stack:
            if any(isinstance(module, LEMoELayer) for module in block.modules()):
                break
            blocks.append(block)
        return blocks

    def _pick(self, output):
        """What a layer returned, with only the columns from the start on."""
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        hidden = hidden.gather(1, self.position[:, :, None].expand(-1, -1, hidden.shape[-1]))
        return hidden if isinstance(output, torch.Tensor) else (hidden, *output[1:])

    def select(self, rows: torch.Tensor) -> CachedBatch:
        """The same for some of the samples."""
        part = copy.copy(self)
        for name in ("start", "expert", "ids", "position", "mask", "is_target"):
            setattr(part, name, getattr(self, name)[rows])
        renumbered = torch.full_like(self.expert, -1)
        renumbered[rows] = torch.arange(len(rows), device=rows.device)
        kept = renumbered[self.row] >= 0
        part.row, part.labels = renumbered[self.row[kept]], self.labels[kept]
        part.base_logits = self.base_logits[kept]
        if self.anchors is not None:
            part.anchors = self.anchors[rows]
        if self.hidden is not None:
            hidden = self.hidden if isinstance(self.hidden, torch.Tensor) else self.hidden[0]
            part.hidden = hidden[rows] if isinstance(self.hidden, torch.Tensor) else (hidden[rows], *self.hidden[1:])
        if self.cache is not None:
            part.cache = self._copy_cache()
            for layer in part.cache.layers:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        return part

    def _copy_cache(self) -> DynamicCache:
        # A forward pass puts new tensors into the cache and leaves the old ones alone: a shallow copy is enough.
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache

    def route(self, adapter_name: str, num_committed: int, gates: torch.Tensor | None = None) -> Route:
        """Every sample through its own expert in training, with `gates` of shape `(b,)` or 1."""
        start = torch.zeros_like(self.start) if self.reuse else self.start
        gates = torch.ones_like(self.start, dtype=torch.float32) if gates is None else gates
        return Route(
            experts=(num_committed + self.expert)[:, None],
            gates=gates[:, None],
            start=start[:, None],
            end=torch.full_like(start, Route.ENDLESS)[:, None],
            num_committed=num_committed,
            uses_open=True,
            last_start=-1 if self.reuse else int(start.max()),
        )

    def logits(self, routes: dict[str, Route]) -> torch.Tensor:
        """Logits of shape `(n, v)` at the target tokens."""
        if not self.reuse:
            with self.context.pinned(routes):
                output = self.root(input_ids=self.ids, attention_mask=self.mask, use_cache=False)
            return output.logits[self.is_target]
        with ExitStack() as stack:
            stack.enter_context(self.context.pinned(routes))
            for block in self.blocks:
                stack.enter_context(replaced_forward(block, self.hidden))
            stack.enter_context(only_targets(self.root.get_output_embeddings(), self.is_target))
            output = self.root(
                input_ids=self.ids,
                attention_mask=self.mask,
                position_ids=self.position,
                past_key_values=self._copy_cache(),
                use_cache=True,
            )
        return output.logits

    def losses(self, logits: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of each sample's target, of shape `(b,)`."""
        loss = F.cross_entropy(logits.float(), self.labels, reduction="none")
        return torch.zeros_like(self.start, dtype=loss.dtype).index_add(0, self.row, loss) / self.num_targets


@contextmanager
def replaced_forward(module: nn.Module, output):
    """Let a module return what is known already."""
    own = module.__dict__.get("forward")
    module.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        del module.forward
        if own is not None:  # accelerate's hooks replace `forward` in the same way
            module.forward = own


@contextmanager
def only_targets(head: nn.Module, is_target: torch.Tensor):
    """Let the language modelling head see target tokens only, as one flat batch."""
    hook = head.register_forward_pre_hook(lambda module, args: (args[0][is_target], *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def reusable_columns(batch: CachedBatch) -> float:
    """
    Up to how many columns, cached ones and those of a step, reusing what is frozen gives the base model's own logits.

    There is no bound for decoders whose only memory is a cache of keys and values, and the attention window where they
    have one. It is 0 for state-space models, and where layers hand each other more than hidden states.
    """
    layers = getattr(batch.cache, "layers", None)
    plain = all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers or [None])
    if not plain or batch.root.get_output_embeddings() is None:
        return 0
    windows = [layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)]
    bound = min(windows, default=math.inf)
    accepted = inspect.signature(batch.root.forward).parameters
    if batch.mask.shape[1] >= bound or "past_key_values" not in accepted or "position_ids" not in accepted:
        return 0
    with torch.no_grad():
        logits = batch.logits({})
    tolerance = 1e-3 if logits.dtype == torch.float32 else 5e-2
    same = logits.shape == batch.base_logits.shape and bool(
        (logits - batch.base_logits).abs().max() <= tolerance * batch.base_logits.abs().max()
    )
    return bound if same else 0
