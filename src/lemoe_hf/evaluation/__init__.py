from .edit_evaluator import EditEvaluator
from .evaluator import Evaluator
from .forced import teacher_forced
from .report import versions
from .same_subject import SameSubject


__all__ = ["EditEvaluator", "Evaluator", "SameSubject", "teacher_forced", "versions"]
