from .edit_evaluator import EditEvaluator
from .evaluator import Evaluator
from .forced import teacher_forced
from .general_ability import general_ability
from .report import versions
from .same_subject import SameSubject


__all__ = ["EditEvaluator", "Evaluator", "SameSubject", "general_ability", "teacher_forced", "versions"]
