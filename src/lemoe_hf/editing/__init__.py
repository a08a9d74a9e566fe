from ..data.edit import Edit
from .arguments import EditingArguments
from .editor import LifelongEditor
from .explanation import Explanation
from .ordering import Order, plan_order
from .result import EditResult
from .trainer import CommitCallback, EditCollator, EditTrainer
from .training import EditingError


__all__ = [
    "CommitCallback",
    "Edit",
    "EditCollator",
    "EditResult",
    "EditTrainer",
    "EditingArguments",
    "EditingError",
    "Explanation",
    "LifelongEditor",
    "Order",
    "plan_order",
]
