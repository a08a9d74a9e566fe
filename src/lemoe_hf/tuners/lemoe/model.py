"""The tuner of LEMoE: experts that are committed, one after the other."""

from __future__ import annotations

import torch

from ...routing.anchors import Anchor
from ..model import EditingModel
from .layer import LEMoELayer


class LEMoEModel(EditingModel):
    """
    Adds a growing bank of experts beside the feed-forward network of a causal language model (LEMoE, EMNLP 2024).

    Made by `get_peft_model(model, LEMoEConfig(...))`; its methods can be called on the [`~peft.PeftModel`] as well.

    Args:
        model (`nn.Module`): The base model. It is not changed.
        peft_config ([`LEMoEConfig`]): The configuration.
        adapter_name (`str`): Name of the adapter.

    Raises:
        ValueError: If the model is not a causal language model that can be edited, or no stack of layers is found in it.
    """

    prefix = "lemoe_"
    tuner_layer_cls = LEMoELayer

    def get_nb_expert_parameters(self, adapter_name: str | None = None) -> tuple[int, int]:
        """
        Number of weights in experts that are in training, and in those that are committed.

        PEFT's `print_trainable_parameters` counts the former; the latter are buffers, which nothing can train.
        """
        name = self._adapter(adapter_name)
        layers = self.layers_of(name)
        in_training, committed = (
            sum(weight.numel() for experts in stacks for weight in experts.weights().values())
            for stacks in ([layer.opened(name) for layer in layers], [layer.bank(name) for layer in layers])
        )
        return in_training, committed

    def commit(
        self,
        anchors: list[Anchor] | None = None,
        entries: list[dict] | None = None,
        adapter_name: str | None = None,
        targets: list[tuple[int, tuple[int, ...]]] | None = None,
    ) -> None:
        """
        Freeze the experts in training: they join the bank and a new one is opened.

        Args:
            anchors (`list` of [`Anchor`], *optional*): Anchors to store with them, beside those that training has left.
            entries (`list[dict]`, *optional*): Ledger entries of the edits, one each, with an `id`.
            adapter_name (`str`, *optional*): The adapter, by default the active one.
            targets (`list` of `tuple[int, tuple[int, ...]]`, *optional*): What edits answer, by their `id`, as tokens.

        Raises:
            ValueError: If no edit is in the open expert.
        """
        name = self._adapter(adapter_name)
        if not anchors and not self.has_open_edits(name):
            raise ValueError(
                f"There is nothing to commit: the open expert of {name!r} holds no edits. Train it first."
            )
        layers = self.layers_of(name)
        with layers[0].changing(name):
            for layer in layers:
                layer.commit(name)
            layers[0].store(name, anchors or [], entries or [], targets or [])

    def end_training(self) -> None:
        if self.has_open_edits():
            self.commit()

    def has_open_edits(self, adapter_name: str | None = None) -> bool:
        """Whether the open expert holds edits, by training or by an editor that has not filled it yet."""
        name = self._adapter(adapter_name)
        return self.layers_of(name)[0].has_open_edits(name)

    def _removed(self, adapter_name: str, expert: int, entries: list[dict]) -> None:
        """Take its expert out of the bank if no other edit uses it, and start anew what is open and empty."""
        layers = self.layers_of(adapter_name)
        lead, anchors = layers[0], layers[0].changed("anchors", adapter_name)
        is_committed = expert < len(lead.bank(adapter_name))
        has_own_keys = lead.configs[adapter_name].routing == "kv_anchor"  # and these name experts by their place
        is_unused = not (anchors.expert == expert).any()
        if is_committed and is_unused and not has_own_keys:
            for layer in layers:
                layer.remove_expert(adapter_name, expert)
            anchors.expert = torch.where(anchors.expert > expert, anchors.expert - 1, anchors.expert)
            for entry in entries:
                entry["expert"] -= entry["expert"] > expert
        if is_committed and is_unused and has_own_keys:
            lead.changed("router_bank", adapter_name).withdraw(expert)
        if not is_committed and not lead.has_open_edits(adapter_name):
            for layer in layers:
                layer.open_experts(adapter_name, 1)  # the next edit must not start from what was taken back
            if has_own_keys:
                lead.open_keys(adapter_name, 1)
                lead.changed("router_bank", adapter_name).forget(expert)
