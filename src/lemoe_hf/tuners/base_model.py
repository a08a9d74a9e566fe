"""Whether a base model is one that can be edited, and that an adapter was made for."""

from __future__ import annotations

import warnings

from torch import nn

from .. import structure
from .config import EditingConfig


def check_base_model(model: nn.Module, config: EditingConfig) -> None:
    """
    Note the base model's shape in a new adapter's config, and compare it with that of a saved one, of which it warns.

    Raises:
        ValueError: If the model cannot be edited, or is so different that it has no place for the adapter.
    """
    base_config = getattr(model, "config", None)
    structure.check_causal(model)
    found = structure.fingerprint(model)
    if config.base_model_fingerprint is None:
        config.base_model_fingerprint = found
    elif config.base_model_fingerprint != found:
        warnings.warn(
            f"This adapter was made for {config.base_model_name_or_path or 'another base model'} (fingerprint "
            f"{config.base_model_fingerprint}), but is put on {getattr(base_config, 'name_or_path', '') or 'a model'} "
            f"(fingerprint {found}). Its edits will not answer as they did; load the base model it was made for.",
            stacklevel=4,
        )
        names = [name for name, _ in model.named_modules()]
        targets = config.target_modules if isinstance(config.target_modules, set) else set()
        if targets and not any(f".{name}".endswith(f".{target}") for target in targets for name in names):
            raise ValueError(
                f"The adapter stands beside {', '.join(sorted(targets)[:4])}, and this model has no such module: it is "
                f"another one. Load the base model that the adapter was made for."
            )
