from .edit_evaluator import EditEvaluator
from .evaluator import Evaluator
from .forced import teacher_forced
from .general_ability import general_ability
from .report import versions
from .same_subject import SameSubject
from .wilke import RollBackEditor, known_facts, roll_back


__all__ = [
    "EditEvaluator",
    "Evaluator",
    "RollBackEditor",
    "SameSubject",
    "general_ability",
    "known_facts",
    "roll_back",
    "teacher_forced",
    "versions",
]
