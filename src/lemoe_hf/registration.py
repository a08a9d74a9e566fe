"""
Tell PEFT about the methods of this package. All other files of it only use PEFT; beside it, `lemoe_hf_autoload` changes one
table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils.peft_types import PeftType, register_peft_method


def add_peft_type(name: str) -> PeftType:
    """Return the member `name` of `PeftType`, adding it first if PEFT does not know it.

    PEFT has no plug-in mechanism: a method must be a member of this enum before it can be registered, and a Python enum
    can only grow through its own tables.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member.__objclass__ = PeftType
    member._sort_order_ = len(PeftType.__members__)
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    if hasattr(PeftType, "_hashable_values_"):  # Python >= 3.12
        PeftType._hashable_values_.append(name)
    type.__setattr__(PeftType, name, member)
    return member


def register(name: str, config_cls: type, model_cls: type, push: Callable[..., Any]) -> None:
    """Register a method with PEFT; a second call with the same classes changes nothing.

    Args:
        name (`str`): Its name, in lower case.
        config_cls (`type`): Its config.
        model_cls (`type`): Its tuner.
        push (`Callable`): What `push_to_hub` of a [`~peft.PeftModel`] is to be with its adapters, called with the model first.

    Raises:
        RuntimeError: If another package, or a later PEFT, has already taken the name.
    """
    peft_type = add_peft_type(name.upper())
    registered = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type)
    if registered is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
        add_push(peft_type, push)
    elif registered.__qualname__ != model_cls.__qualname__ or registered.__module__ != model_cls.__module__:
        raise RuntimeError(
            f"PEFT already has a method called {name.upper()!r}, provided by {registered.__module__}. lemoe_hf cannot "
            f"register its own beside it: update lemoe_hf, or import only one of the two packages."
        )


def add_push(peft_type: PeftType, push: Callable[..., Any]) -> None:
    """Let `PeftModel.push_to_hub` be `push` with adapters of one type; with all others it stays what it was.

    What PEFT inherits from transformers saves the adapter and then puts transformers' own card in the place of the
    adapter's, which alone tells what to import; a method has no say in it.
    """
    inherited = PeftModel.push_to_hub

    @functools.wraps(inherited)
    def push_to_hub(self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        return (push if self.peft_type == peft_type else inherited)(self, *args, **kwargs)

    PeftModel.push_to_hub = push_to_hub
