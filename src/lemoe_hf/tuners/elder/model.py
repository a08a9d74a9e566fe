"""The tuner of ELDER: puts mixtures of LoRAs beside linear layers, and keeps their codes."""

from __future__ import annotations

from typing import Any

from torch import nn

from ... import structure
from ..layer import EditingLayer, is_linear
from ..model import EditingModel
from .config import ELDERConfig
from .layer import ELDERLayer


class ELDERModel(EditingModel):
    """
    Adds mixtures of LoRAs, of a size that edits do not change, beside a linear layer of the FFN in several layers of a causal
    language model (ELDER, AAAI 2025).

    Made by `get_peft_model(model, ELDERConfig(...))`; its methods can be called on the [`~peft.PeftModel`] as well.

    Args:
        model (`nn.Module`): The base model. It is not changed.
        peft_config ([`ELDERConfig`]): The configuration.
        adapter_name (`str`): Name of the adapter.

    Raises:
        ValueError: If the model is not a causal language model that can be edited, has fewer layers than the mixture asks
            for, or `target_modules` names what is no linear layer.
    """

    prefix = "elder_"
    tuner_layer_cls = ELDERLayer

    def _prepare_adapter_config(self, peft_config: ELDERConfig, model_config: dict) -> ELDERConfig:
        if peft_config.target_modules is None:
            asked = peft_config.layers_to_transform
            layers = [asked] if isinstance(asked, int) else asked
            peft_config.target_modules = set(
                structure.find_ffn_outputs(self.model, layers or self._consecutive(peft_config)).values()
            )
        return peft_config

    def _consecutive(self, config: ELDERConfig) -> list[int]:
        """As many layers as the config asks for, the first at its depth."""
        _, stack = structure.find_stack(self.model)
        first = min(round(config.depth * len(stack)), len(stack) - 1)
        if first + config.num_layers > len(stack):
            raise ValueError(
                f"{type(self.model).__name__} has {len(stack)} layers, and `num_layers={config.num_layers}` are asked for, from "
                f"layer {first} on. Lower `num_layers` or `depth`, or pass `layers_to_transform`."
            )
        return list(range(first, first + config.num_layers))

    def _create_and_replace(self, peft_config, adapter_name, target, target_name, parent, current_key, **kwargs):
        if not is_linear(target.get_base_layer() if isinstance(target, EditingLayer) else target):
            raise ValueError(
                f"ELDER puts LoRAs beside linear layers, and {current_key!r} is a {type(target).__name__}. Name linear layers "
                f"in `target_modules`, such as 'down_proj', or leave it out to have them found."
            )
        super()._create_and_replace(peft_config, adapter_name, target, target_name, parent, current_key, **kwargs)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        layers = [each for each in model.modules() if isinstance(each, ELDERLayer) and each.has(adapter_name)]
        self.context.in_order[adapter_name] = layers
        queried = self._queried(model, adapter_name)
        if queried is not None:
            self.context.queried[adapter_name] = queried
            self.context.look_at([queried])

    def _queried(self, model: nn.Module, adapter_name: str) -> nn.Module | None:
        """The module whose input is the query; `None` where the mixtures are in no stack of layers."""
        config = self.peft_config[adapter_name]
        for stack in (module for module in model.modules() if isinstance(module, nn.ModuleList)):
            for index, block in enumerate(stack):
                layers = [module for module in block.modules() if isinstance(module, ELDERLayer)]
                if not any(layer.has(adapter_name) for layer in layers):
                    continue
                if config.query_source == "layer_input":
                    return block
                linear = (
                    model.get_submodule(structure.find_ffn_outputs(model, [index - 1])[index - 1]) if index else None
                )
                lead = next(layer for layer in layers if layer.has(adapter_name))
                if linear is None or structure.linear_sizes(linear)[0] != lead.in_features:
                    raise ValueError(
                        f"`query_source='linear_input'` reads the input of the linear layer before the first mixture, "
                        f"in layer {index - 1}, and there is none of {lead.in_features} inputs. "
                        f"Use 'layer_input', or a later layer."
                    )
                return linear
        return None

    # ------------------------------------------------------------------------------------------------------------- codes

    def refresh_codes(self, adapter_name: str | None = None) -> None:
        """Compute the codes of all edits anew, by the routers as they are now."""
        name = self._adapter(adapter_name)
        self.layers_of(name)[0].refresh_codes(name)

    def end_training(self) -> None:
        """Nothing is frozen in ELDER; codes are brought up to date if the config asks for it."""
        name = self._adapter(None)
        if self.peft_config[name].refresh_codes:
            self.refresh_codes(name)

    def check_deferral(self, adapter_name: str) -> None:
        if self.peft_config[adapter_name].deferral_by == "hamming":
            raise ValueError(
                f"The adapter {adapter_name!r} decides by codes (`deferral_by='hamming'`): its edits share all weights, "
                f"and none can be taken out of them. Edit the prompt again with its earlier answer, "
                f"make a new adapter without the "
                f"edit, or use `deferral_by='names'`, where an undone prompt goes back to the base model."
            )

    def _removed(self, adapter_name: str, expert: int, entries: list[dict]) -> None:
        self.layers_of(adapter_name)[0].changed("codes", adapter_name).remove(expert)
