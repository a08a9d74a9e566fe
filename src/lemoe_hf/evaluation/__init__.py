from .evaluator import EditEvaluator


__all__ = ["EditEvaluator"]
