"""The tuner of MEMoE."""

from __future__ import annotations

from ..model import EditingModel
from .layer import MEMoELayer


class MEMoEModel(EditingModel):
    """
    Adds a mixture of experts beside the feed-forward network of a causal language model, for all edits together (MEMoE, arXiv
    2405.19086).

    Made by `get_peft_model(model, MEMoEConfig(...))`; its methods can be called on the [`~peft.PeftModel`] as well.

    Args:
        model (`nn.Module`): The base model. It is not changed.
        peft_config ([`MEMoEConfig`]): The configuration.
        adapter_name (`str`): Name of the adapter.

    Raises:
        ValueError: If the model is not a causal language model that can be edited, or no stack of layers is found in it.
    """

    prefix = "memoe_"
    tuner_layer_cls = MEMoELayer
