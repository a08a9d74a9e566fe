"""Train what lies above a frozen trunk at the price of what lies above it.

All that stands below the bypass is frozen, and so is every token before the one from which an expert acts. Both are
computed once: the hidden states that enter the bypassed layer, and the keys and values of the earlier tokens. A
training step then runs the upper layers only, on the last tokens only, and computes logits only where there is a
target.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .. import structure
from ..generation import pad_right
from ..routing.cached import cache_in
from ..routing.context import RoutingContext
from ..routing.passes import Acting, Places
from ..tuners.layer import EditingLayer
from .hooks import replaced_forward, seeing_only
from .samples import Sample


# Fewer tokens than this that all texts of a batch begin with are not worth a forward pass of their own.
SHARED_PREFIX = 8
# Where logits are not needed, the language modelling head is left with one column.
FIRST_COLUMN = (slice(None), slice(1))


class CachedBatch:
    """
    Samples with everything frozen computed, ready for training steps.

    Axes: `b` samples, `p` earlier columns, `c` columns of a step: those of each sample from its `first` one on, except its
    last token, which predicts nothing.

    Args:
        root (`nn.Module`): The model, with its LEMoE layers.
        context ([`RoutingContext`]): Of that model.
        samples (`list` of [`Sample`]): What to train on.
        pad (`int`): The padding token.
        reuse (`bool`): Reuse what is frozen. Without it, every step runs whole sequences through the whole model:
            slow, and right for any architecture.
        from_start (`bool`): Reuse the keys and values of the tokens before each sample's `start` as well. Without them,
            every step runs whole sequences through the upper layers: for texts of any length, and for layers with another
            memory.
    """

    def __init__(
        self,
        root: nn.Module,
        context: RoutingContext,
        samples: list[Sample],
        pad: int,
        reuse: bool = True,
        from_start: bool = True,
    ):
        self.root, self.context = root, context
        self.reuse, self.from_start = reuse, reuse and from_start
        self.takes_positions = "position_ids" in structure.accepted_by(root)
        device = root.get_input_embeddings().weight.device
        ids, mask = pad_right([sample.prompt + sample.target for sample in samples], pad, device)
        length = mask.sum(1)
        self.start = torch.tensor([sample.start for sample in samples], device=device)
        self.expert = torch.tensor([sample.expert for sample in samples], device=device)
        self.own = torch.tensor([sample.own for sample in samples], device=device)
        prompt = torch.tensor([len(sample.prompt) for sample in samples], device=device)
        self.first = first = self.start if self.from_start else torch.zeros_like(self.start)
        column = first[:, None] + torch.arange(int((length - 1 - first).max()), device=device)
        self.valid = column < length[:, None] - 1
        self.is_target = self.valid & (column >= prompt[:, None] - 1)
        self.position = column.clamp(max=ids.shape[1] - 1)
        self.ids = ids.gather(1, self.position)
        self.labels = ids.gather(1, (column + 1).clamp(max=ids.shape[1] - 1))
        self.past = torch.arange(max(int(first.max()), 1), device=device) < first[:, None]
        self.blocks = self._frozen_blocks() if reuse else []
        self.cache, self.hidden = None, None
        # Where a KV router trains along: anchors of shape (b, d), and those of earlier edits with their experts.
        self.anchors: torch.Tensor | None = None
        self.replayed: tuple[torch.Tensor, torch.Tensor] | None = None
        if reuse:
            self._run_frozen(ids, mask)

    def _frozen_blocks(self) -> list[nn.Module]:
        """The layers below the lowest bypass."""
        _, stack = structure.find_stack(self.root)
        blocks = []
        for block in stack:
            if any(isinstance(module, EditingLayer) for module in block.modules()):
                break
            blocks.append(block)
        return blocks

    @torch.no_grad()
    def _run_frozen(self, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Run the base model once: what enters the bypassed layer, and the keys and values of the earlier tokens."""
        same = (ids == ids[:1]).all(0)[: int(self.first.min())]
        shared = int(same.long().cumprod(0).sum()) if len(ids) > 1 else 0
        shared = shared if shared >= SHARED_PREFIX else 0
        recorded: dict[str, object] = {}
        with ExitStack() as stack:
            stack.enter_context(self.context.imposed({}))
            stack.enter_context(seeing_only(self.root.get_output_embeddings(), FIRST_COLUMN, self.context))
            cache = None
            if shared:
                cache = cache_in(self.root(input_ids=ids[:1, :shared], use_cache=True))
                cache.batch_repeat_interleave(len(ids))
            if self.blocks:

                def record(module: nn.Module, args: tuple, output: object) -> None:
                    if not self.context.is_imposed:  # a pass of another thread
                        return
                    if "bypassed" in recorded:  # in such a loop it is not frozen: it sees what an expert has done
                        raise ValueError("layers below the bypass run again above it")
                    recorded["output"] = output

                stack.callback(self.blocks[-1].register_forward_hook(record).remove)

                def reach(module: nn.Module, args: tuple) -> None:
                    if self.context.is_imposed:
                        recorded["bypassed"] = True

                for layer in self.context.layers:
                    stack.callback(layer.register_forward_pre_hook(reach).remove)
            position = torch.arange(shared, ids.shape[1], device=ids.device)[None]
            output = self._forward(ids[:, shared:], mask, position, cache)
        if self.blocks:
            hidden = recorded["output"] if isinstance(recorded["output"], torch.Tensor) else recorded["output"][0]
            column = (self.position - shared)[:, :, None].expand(-1, -1, hidden.shape[-1])
            self._set_hidden(recorded["output"], hidden.gather(1, column))
        cache = cache_in(output)
        layers = getattr(cache, "layers", []) if self.from_start else []
        if layers and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers):
            self.cache = cache
            width = self.past.shape[1]
            for i, layer in enumerate(layers):
                # The lower layers do not run again: of what they cached nothing is asked but its length.
                kept = 1 if i < len(self.blocks) else None
                for name in ("keys", "values"):
                    put(layer, name, getattr(layer, name)[:, :kept, :width, :kept].clone())

    def _set_hidden(self, like, hidden: torch.Tensor) -> None:
        """What the last frozen layer returns: hidden states of shape `(b, c, d)`, and nothing else that goes with a row."""
        self.hidden = hidden if isinstance(like, torch.Tensor) else (hidden, *(None for _ in like[1:]))

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Everything that has a row for each sample."""
        names = (
            "start",
            "first",
            "expert",
            "own",
            "ids",
            "position",
            "valid",
            "is_target",
            "labels",
            "past",
            "anchors",
            "hidden",
        )
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "hidden" in found and not isinstance(found["hidden"], torch.Tensor):
            found["hidden"] = found["hidden"][0]
        for i, layer in enumerate(self.cache.layers if self.cache is not None else []):
            found[f"keys.{i}"], found[f"values.{i}"] = layer.keys, layer.values
        return found

    def _with(self, tensors: dict[str, torch.Tensor]) -> CachedBatch:
        batch = copy.copy(self)
        batch.cache = self._copy_cache()
        for name, tensor in tensors.items():
            if "." in name:
                name, i = name.split(".")
                put(batch.cache.layers[int(i)], name, tensor)
            elif name == "hidden":
                batch._set_hidden(self.hidden, tensor)
            else:
                setattr(batch, name, tensor)
        return batch

    @classmethod
    def concat(cls, batches: Sequence[CachedBatch]) -> CachedBatch:
        """All samples of several batches in one."""
        if len(batches) == 1:
            return batches[0]
        tensors = [batch._tensors() for batch in batches]
        return batches[0]._with({name: stacked([each[name] for each in tensors]) for name in tensors[0]})

    def select(self, rows: torch.Tensor) -> CachedBatch:
        """The same for some of the samples, with no more columns than they need."""
        columns, past = int(self.num_columns[rows].max()), max(int(self.past[rows].sum(1).max()), 1)
        tensors = {}
        for name, tensor in self._tensors().items():
            if name in ("start", "first", "expert", "own", "anchors"):
                tensors[name] = tensor[rows]
            elif "." in name:
                tensors[name] = tensor[:, :, :past][rows]
            else:
                tensors[name] = tensor[:, : past if name == "past" else columns][rows]
        return self._with(tensors)

    @property
    def num_columns(self) -> torch.Tensor:
        """Columns that each sample has in a step, of shape `(b,)`."""
        return self.valid.sum(1)

    def _copy_cache(self) -> DynamicCache | None:
        # A forward pass puts new tensors into the cache and leaves the old ones alone: a shallow copy is enough.
        if self.cache is None:
            return None
        cache = copy.copy(self.cache)
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        return cache

    def acting(
        self, num_committed: int, experts: torch.Tensor | None = None, gates: torch.Tensor | None = None
    ) -> Acting:
        """Every sample through its own expert in training, or through `experts` with `gates`, both of shape `(b, s)`."""
        experts = (num_committed + self.expert)[:, None] if experts is None else experts
        gates = torch.ones_like(experts, dtype=torch.float32) if gates is None else gates
        column = torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
        row = torch.arange(len(self.ids), device=self.ids.device)[:, None].expand_as(self.ids)
        acts = column >= (self.start - self.first)[:, None]
        gates = gates[:, :, None] * acts[:, None]
        return Acting(row, column, acts, self.ids.shape[1], experts, gates, num_committed, uses_open=True)

    def logits(self, acting: dict[str, Places]) -> torch.Tensor:
        """Logits of shape `(n, v)` at the `n` target tokens of all samples, one sample after the other."""
        if not self.reuse:
            with self.context.imposed(acting):
                logits = self._forward(self.ids, self.valid, self.position).logits
            return logits[:, -self.ids.shape[1] :][self.is_target]  # CPM-Ant has columns of its own before
        mask = torch.cat([self.past, self.valid], 1) if self.from_start else self.valid
        with ExitStack() as stack:
            stack.enter_context(self.context.imposed(acting))
            for block in self.blocks:
                stack.enter_context(replaced_forward(block, self.hidden, self.context))
            stack.enter_context(seeing_only(self.root.get_output_embeddings(), self.is_target, self.context))
            return self._forward(self.ids, mask, self.position, self._copy_cache()).logits

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, position: torch.Tensor, cache: DynamicCache | None = None
    ):
        """A forward pass of the model, which is given what it can take."""
        # Positions are told, as `generate` does: RoBERTa would count them otherwise.
        given = {"position_ids": position} if self.takes_positions else {}
        if self.from_start:
            given[structure.cache_argument(self.root)] = cache
        return self.root(input_ids=ids, attention_mask=mask.long(), use_cache=self.from_start, **given)

    def losses(self, logits: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of each sample's target, of shape `(b,)`."""
        loss = F.cross_entropy(logits.float(), self.labels[self.is_target], reduction="none")
        row = self.is_target.nonzero()[:, 0]
        return torch.zeros_like(self.start, dtype=loss.dtype).index_add(0, row, loss) / self.is_target.sum(1)


def put(layer: DynamicLayer, name: str, tensor: torch.Tensor) -> None:
    """Give a layer of a cache other keys or values."""
    setattr(layer, name, tensor)
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = tensor.shape[2]


def stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Tensors of the rows of several batches as one, with zeros behind those that are shorter than others."""
    dim = 2 if tensors[0].dim() == 4 else 1  # keys and values have their heads before their columns
    if tensors[0].dim() == 1 or len({tensor.shape[dim] for tensor in tensors}) == 1:
        return torch.cat(tensors)
    width = max(tensor.shape[dim] for tensor in tensors)
    behind = [0, 0] * (tensors[0].dim() - 1 - dim)
    return torch.cat([F.pad(tensor, [*behind, 0, width - tensor.shape[dim]]) for tensor in tensors])
