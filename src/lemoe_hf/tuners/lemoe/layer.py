"""The bypass of LEMoE: a bank of experts beside a frozen module."""

from __future__ import annotations

import torch
from torch import nn

from ... import structure
from ...routing.kv_anchor import KVRouter, padded
from ...routing.passes import EVERYTHING, Acting, Batch, ExpertPass
from ...routing.training_batch import lessons_of, new_edits
from ..experts import Experts, bypass
from ..known import KNOWN
from ..layer import EditingLayer
from .config import LEMoEConfig


class LEMoELayer(EditingLayer):
    r"""
    A frozen module with experts beside it: $h(x) = \mathrm{FFN}_0(x) + \lambda \sum_i g_i f_i(x)$ (LEMoE, section 4.1).

    Committed experts lie in the bank, where nothing changes them; those in training are open.
    """

    prefix = "lemoe_"
    adapter_layer_names = ("lemoe_open", "lemoe_router")
    other_param_names = ("lemoe_bank", "lemoe_router_bank", *(f"lemoe_{name}" for name in KNOWN))
    configs: dict[str, LEMoEConfig]

    def make(self, adapter_name: str, config: LEMoEConfig, leads: bool) -> None:
        sizes = (self.in_features, config.expert_dim or self.ffn_width(), config.expert == "ffn")
        dtype = getattr(torch, config.expert_dtype)
        self.lemoe_open[adapter_name] = Experts(
            config.num_open_experts, *sizes, trainable=True, out_features=self.out_features
        )
        self.lemoe_bank[adapter_name] = Experts(
            config.num_experts, *sizes, trainable=False, dtype=dtype, out_features=self.out_features
        )
        if leads and config.routing == "kv_anchor":
            self.lemoe_router[adapter_name], self.lemoe_router_bank[adapter_name] = KVRouter.pair(
                config, self.hidden_size
            )
        self.lemoe_open[adapter_name].reset_parameters(config.init_weights)

    def delta(self, adapter_name: str, acting: Acting, x: torch.Tensor) -> torch.Tensor:
        return bypass(self.bank(adapter_name), self.opened(adapter_name), x, acting)

    # ----------------------------------------------------------------------------------------------------------- experts

    def bank(self, adapter_name: str) -> Experts:
        """Committed experts."""
        return self.part("bank", adapter_name)

    def opened(self, adapter_name: str) -> Experts:
        """Experts in training."""
        return self.part("open", adapter_name)

    def keys(self, adapter_name: str) -> KVRouter:
        """The half of a router with keys that is in training."""
        return self.part("router", adapter_name)

    def router_bank(self, adapter_name: str) -> KVRouter:
        """The committed half of a router with keys."""
        return self.part("router_bank", adapter_name)

    def replay(self, adapter_name: str, anchors: torch.Tensor, expert: torch.Tensor) -> None:
        """Keep anchors to be replayed when later experts are trained, as [`KVRouter.remember`] does."""
        with self.changing(adapter_name):
            self.changed("router_bank", adapter_name).remember(anchors, expert)

    def open_experts(self, adapter_name: str, num: int, seed: int = 0) -> None:
        """Replace the experts in training by `num` new ones."""
        old = self.opened(adapter_name)
        width, gated = old.in_proj.shape[2], "gate_proj" in old.names
        new = Experts(num, self.in_features, width, gated, trainable=True, out_features=self.out_features)
        new.reset_parameters(self.configs[adapter_name].init_weights, seed)
        new.to(old.in_proj.device, old.in_proj.dtype)
        new.requires_grad_(old.in_proj.requires_grad)
        with self.context.versions.changing():
            self.put("open", adapter_name, new)

    def open_keys(self, adapter_name: str, num: int) -> None:
        """Give every expert in training a key of its own."""
        config, num_committed = self.configs[adapter_name], len(self.bank(adapter_name))
        with self.context.versions.changing():
            self.put("router", adapter_name, self.keys(adapter_name).opened(num, num_committed, config))

    def commit(self, adapter_name: str) -> None:
        """Move the experts in training to the end of the bank, where nothing changes them any more, and open a new one."""
        config = self.configs[adapter_name]
        with self.context.versions.changing():
            bank = self.changed("bank", adapter_name)
            for name, weight in self.opened(adapter_name).weights().items():
                bank.append(name, weight)
            if adapter_name in self.lemoe_router:
                keys = self.keys(adapter_name)
                keys.freeze_into(self.changed("router_bank", adapter_name), config)
                self.put("router", adapter_name, keys.opened(1, len(bank), config))
            self.open_experts(adapter_name, 1)

    def has_open_edits(self, adapter_name: str) -> bool:
        """Whether the open expert holds edits, by training or by an editor that has not filled it yet."""
        return bool((self.anchors(adapter_name).expert >= len(self.bank(adapter_name))).any())

    def remove_expert(self, adapter_name: str, expert: int) -> None:
        with self.context.versions.changing():
            bank = self.changed("bank", adapter_name)
            for name, weight in bank.weights().items():
                bank.set(name, torch.cat([weight[:expert], weight[expert + 1 :]]))

    def sizes(self, adapter_name: str) -> dict[str, int]:
        sizes = {
            "num_experts": len(self.bank(adapter_name)),
            "num_open_experts": len(self.opened(adapter_name)),
        }
        if adapter_name in self.lemoe_router_bank:
            sizes["num_router_anchors"] = len(self.router_bank(adapter_name).anchors)
        return sizes

    # ----------------------------------------------------------------------------------------------------------- routing

    def learns(self, adapter_name: str) -> bool:
        return torch.is_grad_enabled() and self.opened(adapter_name).in_proj.requires_grad

    def expert_in_training(self, adapter_name: str) -> int:
        return len(self.bank(adapter_name))

    def may_act(self, adapter_name: str) -> bool:
        return bool(len(self.bank(adapter_name))) or super().may_act(adapter_name)

    def route(self, adapter_name: str, root: nn.Module, batch: Batch) -> ExpertPass | Acting | None:
        config, num_committed = self.configs[adapter_name], len(self.bank(adapter_name))
        learns = self.learns(adapter_name)
        if self.training and learns:
            return self._learn(adapter_name, root, batch)
        if self.acts_anyhow(adapter_name):
            acting = self._to_open(adapter_name, [(piece.row, piece.places) for piece in batch.pieces], batch)
            return self._with_gradients(adapter_name, root, batch, acting) if learns else acting
        if config.routing == "nearest_anchor":
            return ExpertPass(self.router(adapter_name), batch, num_committed, learns)
        acting = self.keys(adapter_name).serve(
            config,
            self.router_bank(adapter_name),
            batch,
            root,
            self.anchors(adapter_name) if config.deferral else None,
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
            router, device = self.keys(adapter_name), batch.ids.device
            embedded = router.anchors_of(root, padded([batch.pieces[0].tokens or [-1]]).to(device))
            learner = torch.tensor([acting.num_committed], device=device)
            bank = self.router_bank(adapter_name)
            _, gates = router.learn(self.configs[adapter_name], bank, embedded, learner)
            acting.gates = acting.gates + 0 * gates.sum()
        return acting

    def _to_open(
        self, adapter_name: str, places: list[tuple[int, list[int]]], batch: Batch, gate: float = 1.0
    ) -> Acting:
        """The open expert, on these columns of rows."""
        num_committed = len(self.bank(adapter_name))
        experts = torch.full((len(places), 1), num_committed, device=batch.ids.device)
        gates = torch.full((len(places), 1), gate, device=batch.ids.device)
        return Acting.of(places, experts, gates, batch.width, num_committed, uses_open=True)

    def _learn(self, adapter_name: str, root: nn.Module, batch: Batch) -> Acting:
        """Let the open expert act on the answers of a training batch, and put its prompts in scope."""
        config, anchors = self.configs[adapter_name], self.anchors(adapter_name)
        num_committed = len(self.bank(adapter_name))
        lessons = lessons_of(batch.pieces, structure.bos_token(root))
        new, made, entries = new_edits(anchors, lessons, num_committed)
        device = batch.ids.device
        if config.routing == "kv_anchor" and lessons:
            router, bank = self.keys(adapter_name), self.router_bank(adapter_name)
            embedded = router.anchors_of(root, padded([lesson.read for lesson in lessons]).to(device))
            if new and config.router_replay:
                rows = [lessons.index(lesson) for lesson in new]
                self.replay(adapter_name, embedded[rows], torch.full((len(rows),), num_committed, device=device))
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
        device = self.opened(adapter_name).in_proj.device
        none = torch.zeros(1, 1, dtype=torch.long, device=device)
        num_committed = len(self.bank(adapter_name))
        ones = torch.ones(1, 1, 1, device=device)
        return Acting(none, none, none == 0, EVERYTHING, none + num_committed, ones, num_committed, True)
