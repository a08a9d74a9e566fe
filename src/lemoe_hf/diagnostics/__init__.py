"""What editing would do to a model, before it is done: for any dense causal language model, with or without an adapter."""

from ..moments import Whitening, keys_of, second_moments
from ..rank_one import LayerSelection, select_layer
from .conflicts import Pair, bound_pairs
from .interference import Interference, predict_interference
from .order import CostOrder, by_descending_norm, order_cost, plan_by_cost
from .superposition import Superposition, SuperpositionReport, kurtosis, layer_profile, superposition_report


__all__ = [
    "CostOrder",
    "Interference",
    "LayerSelection",
    "Pair",
    "Superposition",
    "SuperpositionReport",
    "Whitening",
    "bound_pairs",
    "by_descending_norm",
    "keys_of",
    "kurtosis",
    "layer_profile",
    "order_cost",
    "plan_by_cost",
    "predict_interference",
    "second_moments",
    "select_layer",
    "superposition_report",
]
