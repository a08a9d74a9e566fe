"""Short names of models and inputs, under which what was computed with them is found again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTuner
from transformers import PreTrainedTokenizerBase

from .report import versions


# Values that are looked at of every weight of the base model.
SAMPLE = 256


def digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def digest_of_tensor(tensor: torch.Tensor) -> str:
    """Of every bit of it."""
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(values.numpy().data).hexdigest()[:16]


def digest_of_base(model: PeftModel) -> str:
    """
    Of the versions, and of a sample of the base model's weights: the same with an adapter on it and without.

    Raises:
        TypeError: If the model is no [`~peft.PeftModel`], or its method learns prompts rather than weights.
    """
    if not isinstance(getattr(model, "base_model", None), BaseTuner):
        raise TypeError(
            f"Only a PeftModel is measured against its base model, and with a method that adds weights, such as LEMoE or "
            f"LoRA; got {type(model).__name__}."
        )
    found, prefix = [], str(model.base_model.prefix)
    for name, weight in model.named_parameters():
        if prefix not in name and "modules_to_save" not in name:
            sample = weight.detach().flatten()[:: weight.numel() // SAMPLE + 1]
            found.append((tuple(weight.shape), digest_of_tensor(sample)))
    return digest(versions(), found)


def digest_of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of all that makes tokens of a text."""
    vocabulary = sorted(tokenizer.get_vocab().items())
    return digest(vocabulary, tokenizer.special_tokens_map, tokenizer.chat_template, tokenizer("a text")["input_ids"])


def digest_of_model(model: PeftModel) -> str:
    """Of the base model and, unless they are disabled, of all that would be saved of the active adapters."""
    found = [digest_of_base(model)]
    for name in model.active_adapters if model.get_model_status().enabled else ():
        config = {key: value for key, value in model.peft_config[name].to_dict().items() if key != "inference_mode"}
        found.append(json.dumps(config, sort_keys=True, default=sorted))
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
        found += [f"{key} {digest_of_tensor(tensor)}" for key, tensor in sorted(state.items())]
    return digest(found)
