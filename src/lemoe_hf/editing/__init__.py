from ..data.edit import Edit
from .arguments import EditingArguments
from .editor import LifelongEditor
from .result import EditResult, Explanation
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
]
