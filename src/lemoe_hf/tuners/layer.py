"""What stands beside a frozen module, whatever the method: where adapters are kept, and what they know of their edits.

Axes: `b` batch, `t` tokens, `g` pieces of texts, `n` columns of each, `d` hidden size.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn
from transformers.pytorch_utils import Conv1D

from .. import structure
from ..routing.context import RoutingContext
from ..routing.passes import EVERYTHING, Batch, Pass, Places
from .config import EditingConfig
from .known import KnownEdits


def is_linear(module: nn.Module) -> bool:
    """Whether a module maps vectors of one size to vectors of another, as PEFT knows them, and is no FFN."""
    return hasattr(module, "in_features") or isinstance(module, Conv1D)


class EditingLayer(KnownEdits, nn.Module, BaseTunerLayer):
    r"""
    A frozen module with something beside it that edits: $h(x) = f_0(x) + \lambda \Delta(x)$.

    Wraps the FFN of a layer or, where there is no module to call the FFN, the whole layer; then what stands beside it reads
    the layer's output. A linear layer, if `target_modules` names one, is wrapped with something of its sizes. Which texts are
    acted on, and on which of their tokens, is the business of the [`RoutingContext`].

    A method names its containers in `adapter_layer_names` (trained) and `other_param_names` (stored), all of which begin with
    its `prefix`, and tells what acts (`route`) and what that adds (`delta`). What is `of_fixed_size` does not grow with edits.
    """

    of_fixed_size: tuple[str, ...] = ()

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
        self.configs: dict[str, EditingConfig] = {}
        for name in self.adapter_layer_names + self.other_param_names:
            setattr(self, name, nn.ModuleDict())
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

    def __repr__(self) -> str:
        return self.prefix.replace("_", ".") + super().__repr__()

    # ------------------------------------------------------------------------------------------ what a method has to tell

    def make(self, adapter_name: str, config: EditingConfig, leads: bool) -> None:
        """Make what an adapter has in this layer, of the sizes that its config tells."""
        raise NotImplementedError

    def learns(self, adapter_name: str) -> bool:
        """Whether what an adapter has here is in training."""
        raise NotImplementedError

    def expert_in_training(self, adapter_name: str) -> int:
        """In which expert a training loop makes its edits."""
        raise NotImplementedError

    def route(self, adapter_name: str, root: nn.Module, batch: Batch) -> Pass | Places | None:
        """
        Find out what an adapter does in a forward pass.

        Args:
            adapter_name (`str`): The adapter.
            root (`nn.Module`): The model, for its input embeddings.
            batch ([`Batch`]): The texts of the pass.

        Returns:
            What acts, or a [`Pass`] that will tell when the texts have been looked at; `None` where nothing acts.
        """
        raise NotImplementedError

    def act_on_all(self, adapter_name: str) -> Places | None:
        """Act on inputs that are no text, in a model of another kind, whatever they are."""
        raise NotImplementedError

    def delta(self, adapter_name: str, acting: Places, x: torch.Tensor) -> torch.Tensor:
        """What is added, in the unit of `normalize`, of shape `(g, n, o)`, where `x` of shape `(g, n, d)` comes in."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------------------- adapters

    def update_layer(self, adapter_name: str, config: EditingConfig, leads: bool) -> None:
        """Add an adapter, of the sizes that its config tells. The layer that `leads` also knows the edits."""
        self.configs[adapter_name] = config
        if leads:
            self.lead(adapter_name, config)
        self.make(adapter_name, config, leads)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def ffn_width(self) -> int:
        """Inner width of the FFN that is bypassed."""
        base = self.get_base_layer()
        ffn = base.get_submodule(structure.find_ffn(base) or "") if self.is_block else base
        return structure.ffn_width(ffn, self.in_features)

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

    # ------------------------------------------------------------------------------------------- whether anything acts

    def has(self, adapter_name: str) -> bool:
        """Whether an adapter has something in this layer."""
        return adapter_name in self.configs

    def dtype(self, adapter_name: str) -> torch.dtype:
        """In which an adapter computes."""
        return next(self.part(self.adapter_layer_names[0].removeprefix(self.prefix), adapter_name).parameters()).dtype

    def acts_anyhow(self, adapter_name: str) -> bool:
        """Whether an adapter without edits acts on every text, as tests want it."""
        return not self.configs[adapter_name].init_weights and not len(self.anchors(adapter_name))

    def may_act(self, adapter_name: str) -> bool:
        """Whether anything of an adapter may have a say in a forward pass."""
        return bool(len(self.anchors(adapter_name))) or self.learns(adapter_name) or self.acts_anyhow(adapter_name)

    def sizes(self, adapter_name: str) -> dict[str, int]:
        """Sizes that a method's config tells beside those of [`EditingConfig`]."""
        return {}

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
        """What the module gives, `hidden`, with what its input `x` is made of beside it, as the pass that is running tells."""
        for adapter_name in self.active_adapters:
            acting = self.context.acting(adapter_name) if self.has(adapter_name) else None
            if acting is not None and self.context.streams > 1:
                acting = acting.in_streams(self.context.streams)
            if acting is not None:
                hidden = self._bypass(adapter_name, acting, hidden if self.is_block else x, hidden)
        return hidden

    def _bypass(self, adapter_name: str, acting: Places, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        config = self.configs[adapter_name]
        index, written = self._places(acting, x)
        base = hidden.reshape(-1, hidden.shape[-1])  # a mixture of experts may return its tokens in one row
        read = x.reshape(-1, x.shape[-1])[index].to(self.dtype(adapter_name))
        if config.normalize:
            read = F.rms_norm(read, read.shape[-1:])
        delta = self.delta(adapter_name, acting, read) * (config.lam * (config.output_scale or 1.0))
        index = index[written]
        # Only what is acted on is touched: all other tokens keep the base model's bits.
        return base.index_put((index,), base[index] + delta[written].to(base.dtype)).view_as(hidden)

    def _places(self, acting: Places, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all tokens in one row those that are read, of shape `(g, n)`, and which of them are written to."""
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
