"""The bypass: a bank of experts beside a frozen module.

Axes: `b` batch, `t` tokens, `s` slots of the route, `e` experts, `d` hidden size, `r` width of an expert.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn
from transformers.pytorch_utils import Conv1D

from ... import structure
from ...routing.anchors import Anchor, Anchors
from ...routing.context import RoutingContext
from ...routing.kv_anchor import KVRouter, padded
from ...routing.passes import EVERYTHING, Acting, Batch, Pass
from ...routing.relations import Relations
from ...routing.router import Router
from ...routing.targets import Targets
from ...routing.training_batch import lessons_of, new_edits
from ...routing.vocabulary import Vocabulary, kinds_from_lists
from .config import LEMoEConfig
from .experts import Experts, bypass
from .ledger import Bytes, lines_of
from .sizes import write_sizes


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps vectors of one size to vectors of another, as PEFT knows them, and is no FFN."""
    return hasattr(module, "in_features") or isinstance(module, Conv1D)


class LEMoELayer(nn.Module, BaseTunerLayer):
    r"""
    A frozen module with experts beside it: $h(x) = \mathrm{FFN}_0(x) + \lambda \sum_i g_i f_i(x)$ (LEMoE, section 4.1).

    Wraps the FFN of a layer or, where there is no module to call the FFN, the whole layer; then the experts read the
    layer's output. A linear layer, if `target_modules` names one, is wrapped with experts of its sizes. Which experts act, on
    which tokens, is the business of the [`RoutingContext`].
    """

    adapter_layer_names = ("lemoe_open", "lemoe_router")
    other_param_names = (
        "lemoe_bank",
        "lemoe_router_bank",
        "lemoe_anchors",
        "lemoe_targets",
        "lemoe_vocabulary",
        "lemoe_relations",
        "lemoe_ledger",
    )

    def __init__(self, base_layer: nn.Module, hidden_size: int, context: RoutingContext, is_block: bool = False):
        super().__init__()
        self.base_layer = base_layer
        self.hidden_size = hidden_size
        self.in_features, self.out_features = (
            _get_in_out_features(base_layer) if is_linear(base_layer) else (hidden_size, hidden_size)
        )
        self.is_block = is_block
        self.place = len(context.layers)
        self.context = context
        self.configs: dict[str, LEMoEConfig] = {}
        self.lemoe_open = nn.ModuleDict()
        self.lemoe_bank = nn.ModuleDict()
        self.lemoe_router = nn.ModuleDict()
        self.lemoe_router_bank = nn.ModuleDict()
        self.lemoe_anchors = nn.ModuleDict()
        self.lemoe_targets = nn.ModuleDict()
        self.lemoe_vocabulary = nn.ModuleDict()
        self.lemoe_relations = nn.ModuleDict()
        self.lemoe_ledger = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of their layers, such as the kind of attention, also from one that is wrapped whole.
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base_layer":
                raise
            return getattr(super().__getattr__("base_layer"), name)

    # ---------------------------------------------------------------------------------------------------------- adapters

    def update_layer(self, adapter_name: str, config: LEMoEConfig, width: int, leads: bool) -> None:
        """Add an adapter, of the sizes that its config tells. The layer that `leads` also holds the anchors."""
        self.configs[adapter_name] = config
        gated = config.expert == "ffn"
        dtype = getattr(torch, config.expert_dtype)
        sizes = (self.in_features, width, gated)
        self.lemoe_open[adapter_name] = Experts(
            config.num_open_experts, *sizes, trainable=True, out_features=self.out_features
        )
        self.lemoe_bank[adapter_name] = Experts(
            config.num_experts, *sizes, trainable=False, dtype=dtype, out_features=self.out_features
        )
        if leads:
            self.lemoe_anchors[adapter_name] = Anchors(config.num_anchors, config.num_anchor_tokens)
            self.lemoe_targets[adapter_name] = Targets(*(getattr(config, name) for name in Targets.sizes))
            self.lemoe_vocabulary[adapter_name] = Vocabulary(*(getattr(config, name) for name in Vocabulary.sizes))
            self.lemoe_ledger[adapter_name] = Bytes(config.num_ledger_bytes)
            if config.asks_relation:
                sizes = [getattr(config, name) for name in Relations.sizes]
                self.lemoe_relations[adapter_name] = Relations(*sizes)
            if config.routing == "kv_anchor":
                self.lemoe_router[adapter_name], self.lemoe_router_bank[adapter_name] = KVRouter.pair(
                    config, self.hidden_size
                )
        self.lemoe_open[adapter_name].reset_parameters(config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module):
        # Quantised weights are of integers: they tell the device, and experts beside them stay as they are.
        weights = sorted(base_layer.parameters(), key=lambda weight: not weight.is_floating_point())
        if not weights:
            return None, None
        # Offloaded weights are on `meta`; the hook that fetches them knows where they are used.
        hooks = (getattr(module, "_hf_hook", None) for module in base_layer.modules())
        devices = (getattr(hook, "execution_device", None) for hook in hooks)
        device = next((torch.device(device) for device in devices if device is not None), weights[0].device)
        return device, weights[0].dtype if weights[0].is_floating_point() else None

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        base_device, dtype = self._get_base_layer_device_and_dtype(self.get_base_layer())
        device = device or base_device
        for name in self.adapter_layer_names + self.other_param_names:
            container = getattr(self, name)
            if device is None or adapter_name not in container:
                continue
            module = container[adapter_name]
            if all(weight.device.type != "meta" for weight in [*module.parameters(), *module.buffers()]):
                module.to(device)
                if dtype is not None and name in self.adapter_layer_names:
                    module.to(dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.configs.pop(adapter_name, None)
        self.context.taps.pop(adapter_name, None)

    # ----------------------------------------------------------------------------------------------------------- experts

    def open_experts(self, adapter_name: str, num: int, seed: int = 0) -> None:
        """Replace the experts in training by `num` new ones."""
        old = self.lemoe_open[adapter_name]
        width, gated = old.in_proj.shape[2], "gate_proj" in old.names
        new = Experts(num, self.in_features, width, gated, trainable=True, out_features=self.out_features)
        new.reset_parameters(self.configs[adapter_name].init_weights, seed)
        new.to(old.in_proj.device, old.in_proj.dtype)
        new.requires_grad_(old.in_proj.requires_grad)
        self.lemoe_open[adapter_name] = new

    def open_keys(self, adapter_name: str, num: int) -> None:
        """Give every expert in training a key of its own."""
        old = self.lemoe_router[adapter_name]
        self.lemoe_router[adapter_name] = old.opened(
            num, len(self.lemoe_bank[adapter_name]), self.configs[adapter_name]
        )

    def commit(self, adapter_name: str) -> None:
        """Move the experts in training to the end of the bank, where nothing changes them any more, and open a new one."""
        bank, config = self.lemoe_bank[adapter_name], self.configs[adapter_name]
        for name, weight in self.lemoe_open[adapter_name].weights().items():
            stored = getattr(bank, name)
            bank.set(name, torch.cat([stored, weight.detach().to(stored)]))
        if adapter_name in self.lemoe_router:
            router = self.lemoe_router[adapter_name]
            router.freeze_into(self.lemoe_router_bank[adapter_name], config)
            self.lemoe_router[adapter_name] = router.opened(1, len(bank), config)
        self.open_experts(adapter_name, 1)

    def has_open_edits(self, adapter_name: str) -> bool:
        """Whether the open expert holds edits, by training or by an editor that has not filled it yet."""
        return bool((self.lemoe_anchors[adapter_name].expert >= len(self.lemoe_bank[adapter_name])).any())

    def remove_expert(self, adapter_name: str, expert: int) -> None:
        bank = self.lemoe_bank[adapter_name]
        for name, weight in bank.weights().items():
            bank.set(name, torch.cat([weight[:expert], weight[expert + 1 :]]))

    # ----------------------------------------------------------------------------------------------------------- routing

    def vocabulary(self, adapter_name: str) -> Vocabulary:
        """What tokens are. An adapter from before that was kept by itself is given what its relations tell."""
        vocabulary, relations = self.lemoe_vocabulary[adapter_name], self.lemoe_relations
        if not vocabulary.is_known and adapter_name in relations and len(relations[adapter_name].stops):
            known = relations[adapter_name]
            vocabulary.kinds = kinds_from_lists(known.marks, known.stops, known.continuing)
            write_sizes(self, adapter_name)
        return vocabulary

    def router(self, adapter_name: str) -> Router:
        config = self.configs[adapter_name]
        return Router(
            self.lemoe_anchors[adapter_name],
            self.lemoe_targets[adapter_name],
            self.vocabulary(adapter_name),
            self.lemoe_relations[adapter_name] if config.asks_relation else None,
            config.threshold,
            config.relation_threshold,
        )

    def _learns(self, adapter_name: str) -> bool:
        return torch.is_grad_enabled() and self.lemoe_open[adapter_name].in_proj.requires_grad

    def _acts_anyhow(self, adapter_name: str) -> bool:
        return not self.configs[adapter_name].init_weights and not len(self.lemoe_anchors[adapter_name])

    def may_act(self, adapter_name: str) -> bool:
        """Whether anything of an adapter may have a say in a forward pass."""
        has_edits = len(self.lemoe_anchors[adapter_name]) or len(self.lemoe_bank[adapter_name])
        return bool(has_edits) or self._learns(adapter_name) or self._acts_anyhow(adapter_name)

    def route(self, adapter_name: str, root: nn.Module, batch: Batch) -> Pass | Acting | None:
        """
        Find out what an adapter does in a forward pass.

        Args:
            adapter_name (`str`): The adapter.
            root (`nn.Module`): The model, for its input embeddings.
            batch ([`Batch`]): The texts of the pass.

        Returns:
            What acts, or a [`Pass`] that will tell when the texts have been looked at; `None` where nothing acts.
        """
        config, num_committed = self.configs[adapter_name], len(self.lemoe_bank[adapter_name])
        learns = self._learns(adapter_name)
        if self.training and learns:
            return self._learn(adapter_name, root, batch)
        if self._acts_anyhow(adapter_name):
            acting = self._to_open(adapter_name, [(piece.row, piece.places) for piece in batch.pieces], batch)
            return self._with_gradients(adapter_name, root, batch, acting) if learns else acting
        if config.routing == "nearest_anchor":
            return Pass(self.router(adapter_name), batch, num_committed, learns)
        acting = self.lemoe_router[adapter_name].serve(
            config,
            self.lemoe_router_bank[adapter_name],
            batch,
            root,
            self.lemoe_anchors[adapter_name] if config.deferral else None,
            config.threshold,
            self.has_open_edits(adapter_name),
        )
        if learns:  # in evaluation mode, too, a loss has gradients, if only of zero, for what can be trained
            acting = acting or self._to_open(adapter_name, [(0, [0])], batch, gate=0.0)
            acting.uses_open = True
        return self._with_gradients(adapter_name, root, batch, acting) if learns else acting

    def _with_gradients(self, adapter_name: str, root: nn.Module, batch: Batch, acting: Acting) -> Acting:
        """The same, with gradients of zero for a router that none of it has passed."""
        if adapter_name in self.lemoe_router:
            router, device = self.lemoe_router[adapter_name], batch.ids.device
            embedded = router.anchors_of(root, padded([batch.pieces[0].tokens or [-1]]).to(device))
            learner = torch.tensor([acting.num_committed], device=device)
            bank = self.lemoe_router_bank[adapter_name]
            _, gates = router.learn(self.configs[adapter_name], bank, embedded, learner)
            acting.gates = acting.gates + 0 * gates.sum()
        return acting

    def _to_open(
        self, adapter_name: str, places: list[tuple[int, list[int]]], batch: Batch, gate: float = 1.0
    ) -> Acting:
        """The open expert, on these columns of rows."""
        num_committed = len(self.lemoe_bank[adapter_name])
        experts = torch.full((len(places), 1), num_committed, device=batch.ids.device)
        gates = torch.full((len(places), 1), gate, device=batch.ids.device)
        return Acting.of(places, experts, gates, batch.width, num_committed, uses_open=True)

    def _learn(self, adapter_name: str, root: nn.Module, batch: Batch) -> Acting:
        """Let the open expert act on the answers of a training batch, and put its prompts in scope."""
        config, anchors = self.configs[adapter_name], self.lemoe_anchors[adapter_name]
        num_committed = len(self.lemoe_bank[adapter_name])
        lessons = lessons_of(batch.pieces, structure.bos_token(root))
        new, made, entries = new_edits(anchors, lessons, num_committed)
        device = batch.ids.device
        if config.routing == "kv_anchor" and lessons:
            router, bank = self.lemoe_router[adapter_name], self.lemoe_router_bank[adapter_name]
            embedded = router.anchors_of(root, padded([lesson.read for lesson in lessons]).to(device))
            if new and config.router_replay:
                rows = [lessons.index(lesson) for lesson in new]
                bank.remember(embedded[rows], torch.full((len(rows),), num_committed, device=device))
        if new:
            targets = [(entry["id"], tuple(entry["target_ids"])) for entry in entries if entry["target_ids"]]
            self.store(adapter_name, made, entries, targets)
        places = [(lesson.row, lesson.places) for lesson in lessons]
        if not lessons:
            nothing = self._to_open(adapter_name, [(0, [0])], batch, gate=0.0)
            return self._with_gradients(adapter_name, root, batch, nothing)
        acting = self._to_open(adapter_name, places, batch)
        if config.routing == "kv_anchor":
            learner = torch.full((len(lessons),), num_committed, device=device)
            experts, gates = router.learn(config, bank, embedded, learner)
            acting = Acting.of(places, experts, gates, batch.width, num_committed, uses_open=True)
            if config.router_loss:
                replayed = bank.others(embedded) if config.router_replay else None
                acting.loss = config.router_loss * router.loss(bank, embedded, learner, replayed)
        return acting

    def act_on_all(self, adapter_name: str) -> Acting | None:
        """Let the open expert act on inputs that are no text, in a model of another kind, whatever they are."""
        device = self.lemoe_open[adapter_name].in_proj.device
        none = torch.zeros(1, 1, dtype=torch.long, device=device)
        num_committed = len(self.lemoe_bank[adapter_name])
        ones = torch.ones(1, 1, 1, device=device)
        return Acting(none, none, none + num_committed, ones, none == 0, EVERYTHING, num_committed, True)

    def store(
        self,
        adapter_name: str,
        anchors: list[Anchor],
        entries: list[dict],
        targets: list[tuple[int, tuple[int, ...]]],
    ) -> None:
        """Append anchors, lines of the ledger, and targets."""
        self.lemoe_anchors[adapter_name].add(anchors)
        self.lemoe_targets[adapter_name].add(targets)
        self.lemoe_ledger[adapter_name].append(lines_of(entries))
        write_sizes(self, adapter_name)

    def remember(self, adapter_name: str, edits: list[int], embedded: torch.Tensor) -> None:
        """Append keys of edits, as [`Relations.add`] does: from now on they act only where they are asked for."""
        self.lemoe_relations[adapter_name].add(edits, embedded)
        write_sizes(self, adapter_name)

    # ----------------------------------------------------------------------------------------------------------- forward

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any):
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        compiled = torch.compiler.is_compiling()
        edited = self.context.in_graph(self, x, hidden) if compiled else self.edited(x, hidden)
        return edited if isinstance(output, torch.Tensor) else (edited, *output[1:])

    def edited(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """What the module gives, `hidden`, with what experts make of its input `x`, as the pass that is running tells."""
        for adapter_name in self.active_adapters:
            acting = self.context.acting(adapter_name) if adapter_name in self.lemoe_bank else None
            if acting is not None and self.context.streams > 1:
                acting = acting.in_streams(self.context.streams)
            if acting is not None:
                hidden = self._bypass(adapter_name, acting, hidden if self.is_block else x, hidden)
        return hidden

    def _bypass(self, adapter_name: str, acting: Acting, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        config, experts = self.configs[adapter_name], self.lemoe_open[adapter_name]
        index, written = self._places(acting, x)
        base = hidden.reshape(-1, hidden.shape[-1])  # a mixture of experts may return its tokens in one row
        read = x.reshape(-1, x.shape[-1])[index].to(experts.in_proj.dtype)
        if config.normalize:
            read = F.rms_norm(read, read.shape[-1:])
        delta = bypass(self.lemoe_bank[adapter_name], experts, read, acting) * (
            config.lam * (config.output_scale or 1.0)
        )
        index = index[written]
        # Only what an expert writes to is touched: all other tokens keep the base model's bits.
        return base.index_put((index,), base[index] + delta[written].to(base.dtype)).view_as(hidden)

    def _places(self, acting: Acting, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all tokens in one row those that experts read, of shape `(g, n)`, and which of them they write to."""
        if acting.width == EVERYTHING:
            index = torch.arange(x.shape[:-1].numel(), device=x.device)[None]
            return index, torch.ones_like(index, dtype=torch.bool)
        rows, columns, written = (each.to(x.device) for each in (acting.rows, acting.columns, acting.written))
        if x.dim() > 2:
            # Some models keep columns of their own before those of the tokens.
            return rows * x.shape[1] + columns + (x.shape[1] - acting.width), written
        if len(x) % acting.width or len(x) <= int(rows.max()) * acting.width:
            raise ValueError(
                f"`target_modules` names a {type(self.base_layer).__name__} that is given {len(x)} tokens of a batch of "
                f"{acting.width} columns: which texts they belong to cannot be told. Name the module around it, or leave "
                f"`target_modules` out."
            )
        return rows * acting.width + columns, written

    def __repr__(self) -> str:
        return "lemoe." + super().__repr__()
