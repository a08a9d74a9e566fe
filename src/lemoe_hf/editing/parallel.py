"""Several processes, one adapter: experts of one edit each are independent, so each process trains every n-th of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import PartialState
from accelerate.utils import gather_object, parse_flag_from_env

from ..tuners.lemoe.layer import LEMoELayer
from .training import EditingError, TrainingOutcome


def processes() -> PartialState:
    """The processes of this launch; on the CPU where `ACCELERATE_USE_CPU` says so, as for an `Accelerator`."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def by_all_processes(items: Sequence, work: Callable[[Sequence], list]) -> list:
    """
    A result for each item, in their order: every process works on its share of them, and all gather all results.

    Raises:
        EditingError or RuntimeError: In every process, if the work of one of them fails.
    """
    state, failure = processes(), None
    if state.num_processes == 1:
        return work(items)
    mine = items[state.process_index :: state.num_processes]
    try:
        done = work(mine) if mine else []
    except Exception as error:  # the others must hear of it, or they would wait
        told = f"{type(error).__name__} in process {state.process_index}: {error}"
        done, failure = error if isinstance(error, EditingError) else RuntimeError(told), error
    results = [None] * len(items)
    for process, share in enumerate(gather_object([done])):
        if isinstance(share, Exception):
            raise share from failure
        results[process :: state.num_processes] = share
    return results


def train_by_all_processes(
    layers: list[LEMoELayer], adapter_name: str, num: int, train: Callable[[Sequence[int]], TrainingOutcome]
) -> TrainingOutcome:
    """Open `num` experts as all processes have trained them; `train` opens and trains those with the numbers given."""

    def work(mine: Sequence[int]) -> list:
        try:
            outcome = train(mine)
        except EditingError as error:
            raise EditingError(str(error), [mine[i] for i in error.experts]) from None
        stacks = [layer.opened(adapter_name).state_dict() for layer in layers]
        experts = [
            [{name: weight[i].to("cpu", copy=True) for name, weight in stack.items()} for stack in stacks]
            for i in range(len(mine))
        ]
        return list(zip(outcome.losses, outcome.steps, experts, strict=True))

    losses, steps, experts = zip(*by_all_processes(range(num), work), strict=True)
    for layer, trained in zip(layers, zip(*experts, strict=True), strict=True):
        layer.open_experts(adapter_name, num)
        stack = {name: torch.stack([weights[name] for weights in trained]) for name in trained[0]}
        layer.opened(adapter_name).load_state_dict(stack)
    return TrainingOutcome(list(losses), list(steps))
