"""The bypass: a bank of experts beside a frozen module.

Axes: `b` batch, `t` tokens, `s` slots of the route, `e` experts, `d` hidden size, `r` width of an expert.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn
from transformers.pytorch_utils import Conv1D

from ... import structure
from ...routing import nearest_anchor
from ...routing.anchors import Anchor, Anchors
from ...routing.context import RoutingContext
from ...routing.forward_pass import token_labels
from ...routing.kv_anchor import KVRouter
from ...routing.relations import Relations
from ...routing.route import Route
from ...routing.training_batch import prompts_in_training
from .config import LEMoEConfig
from .experts import Experts
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
    other_param_names = ("lemoe_bank", "lemoe_router_bank", "lemoe_anchors", "lemoe_relations", "lemoe_ledger")

    def __init__(self, base_layer: nn.Module, hidden_size: int, context: RoutingContext, is_block: bool = False):
        super().__init__()
        self.base_layer = base_layer
        self.hidden_size = hidden_size
        self.in_features, self.out_features = (
            _get_in_out_features(base_layer) if is_linear(base_layer) else (hidden_size, hidden_size)
        )
        self.is_block = is_block
        self.context = context
        self.configs: dict[str, LEMoEConfig] = {}
        self.lemoe_open = nn.ModuleDict()
        self.lemoe_bank = nn.ModuleDict()
        self.lemoe_router = nn.ModuleDict()
        self.lemoe_router_bank = nn.ModuleDict()
        self.lemoe_anchors = nn.ModuleDict()
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

    def route(
        self, adapter_name: str, root: nn.Module, ids: torch.Tensor, inputs: dict, is_whole: bool = False
    ) -> Route | None:
        """
        Route a batch of prompts.

        Args:
            adapter_name (`str`): The adapter.
            root (`nn.Module`): The model, for its input embeddings.
            ids (`torch.Tensor` of shape `(b, t)`): Tokens of the prompts, -1 for everything else.
            inputs (`dict`): What the forward pass was given.
            is_whole (`bool`): Whether the prompts end where their tokens do, so that no token is of an answer.

        Returns:
            The [`Route`], or `None` where every row is deferred.
        """
        config, bank = self.configs[adapter_name], self.lemoe_bank[adapter_name]
        learns = torch.is_grad_enabled() and self.lemoe_open[adapter_name].in_proj.requires_grad
        in_training = self.training and learns
        acts_anyhow = not config.init_weights and not len(self.lemoe_anchors[adapter_name])
        if in_training:
            anchors, bos = self.lemoe_anchors[adapter_name], structure.bos_token(root)
            start, rows, *seen = prompts_in_training(anchors, ids, token_labels(inputs), bos, expert=len(bank))
            if rows and config.routing == "kv_anchor" and config.router_replay:
                embedded = KVRouter.anchors_of(root, ids, inputs)[rows]
                self.lemoe_router_bank[adapter_name].remember(embedded, torch.full_like(start[rows, 0], len(bank)))
            if rows:
                self.store(adapter_name, *seen)
            route = Route.to_open(start, len(bank), last_start=int(start.max()))
        elif acts_anyhow:
            route = Route.to_open(torch.zeros_like(ids[:, :1]), len(bank))
        else:
            relations = self.lemoe_relations[adapter_name] if config.asks_relation else None
            route = nearest_anchor.route(
                self.lemoe_anchors[adapter_name],
                relations,
                len(bank),
                ids,
                root.get_input_embeddings(),
                is_whole,
                config.threshold,
                config.relation_threshold,
            )
        if config.routing == "kv_anchor":
            router, router_bank = self.lemoe_router[adapter_name], self.lemoe_router_bank[adapter_name]
            learner = route.experts[:, 0] if in_training else None
            uses_open = in_training or acts_anyhow or self.has_open_edits(adapter_name)
            embedded = router.anchors_of(root, ids, inputs)
            route = router.route(config, router_bank, embedded, route, uses_open, learner)
            if in_training and config.router_loss:
                replayed = router_bank.others(embedded) if config.router_replay else None
                route.loss = config.router_loss * router.loss(router_bank, embedded, learner, replayed)
        if learns:
            # In evaluation mode, too, a loss has gradients, if only of zero, for what can be trained.
            route = route or Route.to_open(torch.zeros_like(ids[:, :1]), len(bank), gate=0.0)
            route.uses_open = True
        return route

    def route_all(self, adapter_name: str) -> Route:
        """The route of inputs that are no text, in a model of another kind: through the open expert, whatever they are."""
        start = torch.zeros(1, 1, dtype=torch.long, device=self.lemoe_open[adapter_name].in_proj.device)
        route = Route.to_open(start, len(self.lemoe_bank[adapter_name]))
        return replace(route, num_columns=Route.ENDLESS)

    def store(self, adapter_name: str, anchors: list[Anchor], entries: list[dict]) -> None:
        """Append anchors and lines of the ledger."""
        self.lemoe_anchors[adapter_name].add(anchors)
        self.lemoe_ledger[adapter_name].append(lines_of(entries))
        write_sizes(self, adapter_name)

    def remember(self, adapter_name: str, edits: list[int], embedded: torch.Tensor, is_question: torch.Tensor) -> None:
        """Append keys of edits, as [`Relations.add`] does: from now on they act only where they are asked for."""
        self.lemoe_relations[adapter_name].add(edits, embedded, is_question)
        write_sizes(self, adapter_name)

    # ----------------------------------------------------------------------------------------------------------- forward

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any):
        output = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return output
        for adapter_name in self.active_adapters:
            route = self.context.routes.get(adapter_name)
            if route is not None and adapter_name in self.lemoe_bank:
                output = self._bypass(adapter_name, route, x, output)
        return output

    def _bypass(self, adapter_name: str, route: Route, x: torch.Tensor, output):
        config = self.configs[adapter_name]
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        bank, experts = self.lemoe_bank[adapter_name], self.lemoe_open[adapter_name]
        x = hidden if self.is_block else x
        if x.dim() == 2:  # rows and columns in one
            rows = len(route.experts)
            if route.num_columns != Route.ENDLESS and len(x) != rows * route.num_columns:
                raise ValueError(
                    f"`target_modules` names a {type(self.base_layer).__name__} that is given {len(x)} tokens of the "
                    f"{rows} x {route.num_columns} of the batch: which prompts they belong to cannot be told. Name the module "
                    f"around it, or leave `target_modules` out."
                )
            x = x.unflatten(0, (rows, -1))
        columns = x.shape[:2]
        gates = route.gates_at(columns[1])
        x = x.to(experts.in_proj.dtype)
        if config.normalize:
            x = F.rms_norm(x, x.shape[-1:])
        is_open = (route.experts >= route.num_committed)[..., None]
        delta = torch.zeros((), dtype=x.dtype, device=x.device)
        if len(bank):
            delta = delta + bank(x, route.experts.clamp(max=len(bank) - 1), gates * ~is_open)
        if route.uses_open:
            delta = delta + experts(x, (route.experts - route.num_committed).clamp(min=0), gates * is_open)
        delta = delta * (config.lam * (config.output_scale or 1.0))
        base = hidden.reshape(*columns, -1)  # a mixture of experts may return its tokens in one row
        # A deferred token keeps the base model's bits, which adding a zero would not grant.
        edited = torch.where((gates != 0).any(1)[..., None], base + delta.to(base.dtype), base).view_as(hidden)
        return edited if isinstance(output, torch.Tensor) else (edited, *output[1:])

    def __repr__(self) -> str:
        return "lemoe." + super().__repr__()
