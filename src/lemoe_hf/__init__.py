"""Lifelong model editing as PEFT methods. Importing this package registers them with PEFT; nothing else happens."""

from .registration import add_peft_type, register


add_peft_type("LEMOE")
add_peft_type("ELDER")

from .data import Edit, read_edits  # noqa: E402
from .editing import (  # noqa: E402
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
from .editing.push import push_model  # noqa: E402
from .evaluation import EditEvaluator  # noqa: E402
from .tuners.elder import ELDERConfig, ELDERLayer, ELDERModel  # noqa: E402
from .tuners.lemoe import LEMoEConfig, LEMoELayer, LEMoEModel  # noqa: E402


register("lemoe", LEMoEConfig, LEMoEModel, push_model)
register("elder", ELDERConfig, ELDERModel, push_model)

__version__ = "0.1.0"

__all__ = [
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
    "Order",
    "plan_order",
    "read_edits",
]
