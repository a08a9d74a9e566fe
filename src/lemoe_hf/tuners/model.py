"""The tuner, whatever the method: puts layers that edit into a model, and keeps what is known of the edits."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .. import structure
from ..routing.anchors import Anchor
from ..routing.context import RoutingContext
from ..routing.relations import TAPS
from .base_model import check_base_model
from .config import EditingConfig
from .layer import EditingLayer
from .ledger import entries_of, lines_of
from .loaded import take
from .stamp import sample_of


class EditingModel(BaseTuner):
    """
    What the tuners of this package share.

    Args:
        model (`nn.Module`): The base model. It is not changed.
        peft_config ([`EditingConfig`]): The configuration.
        adapter_name (`str`): Name of the adapter.

    Raises:
        ValueError: If the model is not a causal language model that can be edited, or no stack of layers is found in it.
    """

    tuner_layer_cls: type[EditingLayer]
    target_module_mapping: dict = {}

    # -------------------------------------------------------------------------------------------------------- injection

    def _prepare_adapter_config(self, peft_config: EditingConfig, model_config: dict) -> EditingConfig:
        if peft_config.target_modules is None:
            layers = peft_config.layers_to_transform
            layers = [layers] if isinstance(layers, int) else layers
            peft_config.target_modules = set(structure.find_targets(self.model, peft_config.depth, layers))
        return peft_config

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        config = self.peft_config[adapter_name]
        if config.in_use and config.num_anchors:
            raise ValueError(
                f"This config belongs to an adapter and has grown with it ({config.num_anchors} anchors of edits). Make a "
                f"new {type(config).__name__} for every adapter."
            )
        if any(other is config for name, other in self.peft_config.items() if name != adapter_name):
            config = self.peft_config[adapter_name] = copy.copy(config)  # each adapter grows by itself
        if config.in_use:
            for name, size in config.sizes().items():
                setattr(config, name, size)
        config.in_use = True
        check_base_model(model, config)
        self.context = RoutingContext.of(model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        self.context.tap(adapter_name, self._taps(model, adapter_name))
        self.layers_with(adapter_name)[0].stamp(adapter_name).put_on(sample_of(model))
        self.context.blocks = [
            block
            for block in model.modules()
            if isinstance(block, GradientCheckpointingLayer)
            and any(isinstance(module, EditingLayer) for module in block.modules())
        ]

    def _taps(self, model: nn.Module, adapter_name: str) -> list[nn.Module]:
        """The modules whose inputs tell what a prompt asks for: FFNs, or layers where there is none to call.

        There are none where the bypass is not in a stack of layers.
        """
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        for stack in stacks:
            for depth, block in enumerate(stack):
                layers = [module for module in block.modules() if isinstance(module, EditingLayer)]
                if any(layer.has(adapter_name) for layer in layers):
                    return self._looked_at(stack, depth)
        return []

    def _looked_at(self, stack: nn.ModuleList, depth: int) -> list[nn.Module]:
        """Of a stack of which the first bypassed layer is at `depth`, the modules that are looked at."""
        blocks = [stack[index] for index in sorted({round(share * depth) for share in TAPS})]
        blocks = [block.base_layer if isinstance(block, EditingLayer) else block for block in blocks]
        return [block.get_submodule(structure.find_ffn(block) or "") for block in blocks]

    def _create_and_replace(
        self,
        peft_config: EditingConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        hidden = structure.hidden_size(self.model)
        if not isinstance(target, self.tuner_layer_cls):
            is_block = isinstance(parent, nn.ModuleList)
            layer = self.tuner_layer_cls(target, hidden, self.context, is_block=is_block)
            self._replace_module(parent, target_name, layer, target)
            self.context.layers.append(layer)
            target = layer
        target.train(target.base_layer.training)
        leads = not any(layer.leads(adapter_name) for layer in self.context.layers)
        target.update_layer(adapter_name, peft_config, leads)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # An FFN has no single `.weight` to hand on, and the layer moves its adapters to the right device by itself.
        if isinstance(parent, nn.ModuleList):
            parent[int(child_name)] = new_module
        else:
            setattr(parent, child_name, new_module)

    def unload(self) -> nn.Module:
        """The base model, as it was before but for the `modules_to_save` of the active adapter, as with every PEFT method."""
        model = super().unload()
        self.context.remove(model)
        return model

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            f"{type(self).__name__.removesuffix('Model')} cannot be merged into the base model: what acts depends on the "
            f"prompt, and a weight cannot. Keep the adapter beside the model (it is small), or call `unload()` to get the "
            f"base model back."
        )

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any):
        if merge:
            self._check_merge_allowed()
        return super()._unload_and_optionally_merge(False, *args, **kwargs)

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        self._check_merge_allowed()

    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> AbstractContextManager[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "`adapter_names` mixes LoRA adapters in one batch; here all rows pass the active adapter, and find what "
                "acts on them by their prompts. Call `set_adapter`, and the model once for each adapter."
            )
        return nullcontext()

    def generate(self, *args: Any, **kwargs: Any):
        """`generate` of the base model, whose forward passes are told where the prompts end."""
        if not structure.counts_its_cache(self.model):
            kwargs.setdefault("use_cache", False)
        with self.context.generation(self.model, args, kwargs):
            return self.model.generate(*args, **kwargs)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """
        What `DistributedDataParallel` must not copy from process to process, by its names in a [`~peft.PeftModel`]: anchors
        and ledger grow in training by the prompts that each process has seen, and their sizes differ.
        """
        return [f"base_model.{name}" for name, _ in self.named_buffers() if self.prefix in name]

    # ---------------------------------------------------------------------------------------------------------- loading

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Look at what is loaded, and give every layer its sizes: it may have fewer edits than what was there, or more."""
        state_dict = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        return take(model, adapter_name, state_dict)

    # ---------------------------------------------------------------------------------------------------- edits, ledger

    def layers_of(self, adapter_name: str | None = None) -> list[EditingLayer]:
        """The layers of an adapter (the active one by default), first the one that knows the edits.

        Raises:
            ValueError: If there is no such adapter.
        """
        name = self._adapter(adapter_name)
        layers = self.layers_with(name)
        layers[0].check_loaded(name)
        return layers

    def layers_with(self, adapter_name: str) -> list[EditingLayer]:
        """The same, also if nobody has looked yet at what was loaded."""
        layers = [layer for layer in self.context.layers if layer.has(adapter_name)]
        return sorted(layers, key=lambda layer: not layer.leads(adapter_name))

    def _adapter(self, adapter_name: str | None) -> str:
        name = adapter_name or self.active_adapters[0]
        if name not in self.peft_config:
            raise ValueError(f"There is no adapter {name!r}; the model has {', '.join(self.peft_config) or 'none'}.")
        return name

    def check_several_processes(self) -> None:
        """
        Raises:
            ValueError: If a training loop of several processes cannot train adapters of this method.
        """

    def end_training(self) -> None:
        """What is left to do with the active adapter when a training loop has ended."""

    def store(
        self,
        anchors: list[Anchor],
        entries: list[dict],
        adapter_name: str | None = None,
        targets: list[tuple[int, tuple[int, ...]]] | None = None,
    ) -> None:
        """Append anchors, ledger entries and targets, and write the sizes of everything to the config."""
        name = self._adapter(adapter_name)
        self.layers_of(name)[0].store(name, anchors, entries, targets or [])

    def ledger(self, adapter_name: str | None = None) -> list[dict]:
        """
        The edits of an adapter, oldest first: `id`, `expert`, and what was edited: as `edit` or, from a training loop, as
        tokens. An adapter that was pushed with `push_edits=False` does not tell what was edited.
        """
        name = self._adapter(adapter_name)
        return entries_of(self.layers_of(name)[0].ledger(name).text)

    def check_deferral(self, adapter_name: str) -> None:
        """
        Raises:
            ValueError: If the adapter acts on every prompt, so that no edit can be taken back.
        """
        if not self.peft_config[adapter_name].deferral:
            raise ValueError(
                f"The adapter {adapter_name!r} has `deferral=False`: it would act on the prompt all the same, and the edit "
                f"cannot be undone. Edit the prompt again, or use `deferral=True`."
            )

    def remove_edit(self, edit: int, adapter_name: str | None = None) -> dict:
        """
        Take one edit back: its anchors, its targets, its keys and its line in the ledger.

        Returns:
            The ledger's entry of the edit.

        Raises:
            KeyError: If the ledger has no such edit.
            TypeError: If it is no whole number.
            ValueError: If the adapter acts on every prompt: without deferral no prompt can be given back to the base model.
        """
        if not isinstance(edit, Integral) or isinstance(edit, bool):
            raise TypeError(f"An edit is undone by its `id`, a whole number; got {edit!r}.")
        name = self._adapter(adapter_name)
        self.check_deferral(name)
        lead = self.layers_of(name)[0]
        with self.context.versions.writer():
            return self._without_edit(lead, name, edit)

    def _without_edit(self, lead: EditingLayer, name: str, edit: int) -> dict:
        entries = entries_of(lead.ledger(name).text)
        removed = next((entry for entry in entries if entry["id"] == edit), None)
        if removed is None:
            raise KeyError(f"There is no edit {edit}; the ledger has {[entry['id'] for entry in entries][-20:]}.")
        entries.remove(removed)
        with lead.changing(name):
            lead.reserve(name, lead.next_edit(name))
            lead.changed("anchors", name).remove(edit)
            lead.changed("names", name).remove(edit)
            lead.changed("targets", name).remove(edit)
            if lead.relations(name) is not None:
                lead.changed("relations", name).remove(edit)
            self._removed(name, removed["expert"], entries)
            lead.changed("ledger", name).text = lines_of(entries)
        return removed

    def _removed(self, adapter_name: str, expert: int, entries: list[dict]) -> None:
        """What a method does with the expert of an edit that was taken back; `entries` are those that are left."""
