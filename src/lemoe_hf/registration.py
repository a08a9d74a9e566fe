"""Tell PEFT about the methods of this package. The only file that touches PEFT's private names."""

from __future__ import annotations

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


def register(name: str, config_cls: type, model_cls: type) -> None:
    """Register a method with PEFT; a second call with the same classes changes nothing.

    Raises:
        RuntimeError: If another package, or a later PEFT, has already taken the name.
    """
    peft_type = add_peft_type(name.upper())
    registered = PEFT_TYPE_TO_TUNER_MAPPING.get(peft_type)
    if registered is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    elif registered.__qualname__ != model_cls.__qualname__ or registered.__module__ != model_cls.__module__:
        raise RuntimeError(
            f"PEFT already has a method called {name.upper()!r}, provided by {registered.__module__}. lemoe_hf cannot "
            f"register its own beside it: update lemoe_hf, or import only one of the two packages."
        )
