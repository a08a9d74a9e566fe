"""
Lifelong model editing as PEFT methods. Importing this package registers them with PEFT, now or as soon as PEFT is imported;
everything else is imported when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .after_peft import import_with_peft


if TYPE_CHECKING:
    from .adapter import Adapter
    from .data import Edit, read_edits
    from .editing import (
        CommitCallback,
        EditCollator,
        EditingArguments,
        EditingError,
        EditResult,
        EditTrainer,
        LifelongEditor,
        Order,
        plan_order,
    )
    from .evaluation import EditEvaluator
    from .rank_one import RankOneArguments, RankOneEditor, select_layer
    from .tuners.elder import ELDERConfig, ELDERLayer, ELDERModel
    from .tuners.lemoe import LEMoEConfig, LEMoELayer, LEMoEModel
    from .tuners.memoe import MEMoEConfig, MEMoELayer, MEMoEModel

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "CommitCallback",
    "ELDERConfig",
    "ELDERLayer",
    "ELDERModel",
    "Edit",
    "EditCollator",
    "EditEvaluator",
    "EditResult",
    "EditTrainer",
    "EditingArguments",
    "EditingError",
    "LEMoEConfig",
    "LEMoELayer",
    "LEMoEModel",
    "LifelongEditor",
    "MEMoEConfig",
    "MEMoELayer",
    "MEMoEModel",
    "Order",
    "RankOneArguments",
    "RankOneEditor",
    "plan_order",
    "read_edits",
    "select_layer",
]

# Where the names are from.
_MODULES = {
    "adapter": ("Adapter",),
    "data": ("Edit", "read_edits"),
    "editing": (
        "CommitCallback",
        "EditCollator",
        "EditResult",
        "EditTrainer",
        "EditingArguments",
        "EditingError",
        "LifelongEditor",
        "Order",
        "plan_order",
    ),
    "evaluation": ("EditEvaluator",),
    "rank_one": ("RankOneArguments", "RankOneEditor", "select_layer"),
    "tuners.elder": ("ELDERConfig", "ELDERLayer", "ELDERModel"),
    "tuners.lemoe": ("LEMoEConfig", "LEMoELayer", "LEMoEModel"),
    "tuners.memoe": ("MEMoEConfig", "MEMoELayer", "MEMoEModel"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
_SUBMODULES = (
    "card",
    "data",
    "diagnostics",
    "editing",
    "evaluation",
    "generation",
    "moments",
    "rank_one",
    "registration",
    "routing",
    "structure",
    "tuners",
)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f".{name}", __name__)
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_SUBMODULES})


import_with_peft(f"{__name__}.tuners")
