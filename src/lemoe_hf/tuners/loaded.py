"""What a loader brings, whichever it is, is looked at before it is used; and what is saved is stamped."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from ..routing.context import RoutingContext
from .config import EditingConfig
from .schema import check, digest
from .sizes import check_fits, completed, fill_in, fit_to, own_tensors
from .stamp import differ


class Loaded:
    """The part of an [`EditingLayer`] that is saved and loaded."""

    prefix: ClassVar[str]
    configs: dict[str, EditingConfig]
    context: RoutingContext
    unchecked: set[str]

    @classmethod
    def check_weights(cls, tensors: Mapping[str, torch.Tensor]) -> None:
        """
        Check what a method has stored in a layer, beside what all methods have.

        Raises:
            ValueError: If it does not go together.
        """

    @classmethod
    def num_experts(cls, tensors: Mapping[str, torch.Tensor]) -> int | None:
        """Of how many experts a layer's tensors are; `None` where anchors do not name them by their place."""
        return None

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        for adapter_name in self.container("stamp"):
            self.seal(adapter_name)
        super()._save_to_state_dict(*args, **kwargs)

    def seal(self, adapter_name: str) -> None:
        """Bring the stamp up to date with everything that the adapter has stored, in all layers."""
        stamp, scale = self.stamp(adapter_name), self.configs[adapter_name].output_scale
        stamp.scale = stamp.scale.new_tensor([scale or 0.0])
        layers = [own_tensors(layer, adapter_name) for layer in self.context.layers if layer.has(adapter_name)]
        if all(tensor.device.type != "meta" for tensors in layers for tensor in tensors.values()):
            stamp.seal(digest(type(self), layers))

    def check_loaded(self, adapter_name: str) -> None:
        """
        Look at what a loader has brought that knows nothing of checks, such as transformers' own.

        Raises:
            ValueError: If it is damaged, or not all there.
        """
        layers = [layer for layer in self.context.layers if layer.has(adapter_name)]
        if any(adapter_name in layer.unchecked for layer in layers):
            for layer in layers:
                fill_in(layer, adapter_name)
            own = [own_tensors(layer, adapter_name) for layer in layers]
            loaded = check(type(self), own)
            for layer, tensors in zip(layers, own, strict=True):
                layer.taken(adapter_name, loaded, tensors)

    def taken(self, adapter_name: str, loaded: bytes, tensors: Mapping[str, torch.Tensor]) -> None:
        """
        Take over what a loader has brought, or is about to bring, and what was checked.

        Args:
            adapter_name (`str`): The adapter.
            loaded (`bytes`): The digest of what it has stored in all layers.
            tensors (`Mapping[str, torch.Tensor]`): What it has stored in this one.
        """
        self.unchecked.discard(adapter_name)
        if not self.leads(adapter_name):
            return
        config, stamp = self.configs[adapter_name], self.stamp(adapter_name)
        saved = {key.rpartition(".")[2]: value for key, value in tensors.items() if "_stamp." in key}
        stamp.files.add(loaded)
        # A crash may have left the weights beside an older config, or a newer one; they tell the scale themselves.
        scale = float(saved["scale"])
        if bool(saved["digest"].any()) and scale != float(torch.tensor(config.output_scale or 0.0)):
            config.output_scale = scale or None
        if bool(saved["weights"].any()) and differ(saved["weights"], stamp.here):
            warnings.warn(
                f"This adapter was made for {config.base_model_name_or_path or 'another base model'}, and is put on a model "
                f"of the same shape whose weights are others. Its edits will not answer as they did; load the base model it "
                f"was made for.",
                stacklevel=2,
            )

    def requires_grad_(self, requires_grad: bool = True):
        # The last thing that transformers' own loader does.
        for adapter_name in list(self.unchecked):
            if not any(each.device.type == "meta" and len(each) for each in own_tensors(self, adapter_name).values()):
                self.check_loaded(adapter_name)
        return super().requires_grad_(requires_grad)


def take(model: nn.Module, adapter_name: str, state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Make room in a model's layers for an adapter's state dict, by names within the model, and return it, complete.

    Raises:
        ValueError: If it is damaged, or does not fit; then nothing has changed.
    """
    layers = {
        name: layer for name, layer in model.named_modules() if isinstance(layer, Loaded) and layer.has(adapter_name)
    }
    own = {
        name: {key[len(name) + 1 :]: value for key, value in state_dict.items() if key.startswith(f"{name}.")}
        for name in layers
    }
    own = {name: completed(layers[name], adapter_name, tensors) for name, tensors in own.items()}
    for name, tensors in own.items():
        check_fits(layers[name], adapter_name, tensors)
    named = [
        {key.replace(f".{adapter_name}.", ".", 1): tensor for key, tensor in tensors.items()}
        for tensors in own.values()
    ]
    loaded = check(type(next(iter(layers.values()))), named)
    for name, tensors in own.items():
        fit_to(layers[name], adapter_name, tensors)
        layers[name].taken(adapter_name, loaded, tensors)
    return state_dict | {f"{name}.{key}": tensor for name, tensors in own.items() for key, tensor in tensors.items()}
