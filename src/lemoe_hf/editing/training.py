"""What training an edit needs, whatever the method."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import torch

from .activations import CachedBatch


LEARNED = 1.0  # nats a token: above it, greedy decoding says something else

# Rows of one forward and backward pass.
SAMPLES_AT_ONCE = 64


class EditingError(RuntimeError):
    """Training an edit failed; the model is as it was before."""

    def __init__(self, message: str, experts: list[int]):
        super().__init__(message)
        self.experts = experts

    def __reduce__(self):  # it goes from one process to the others
        return type(self), (str(self), self.experts)


def in_plain_mode(function):
    """Let a function compute as it always does, also for a caller without gradients or with another default dtype."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                return function(*args, **kwargs)
        finally:
            torch.set_default_dtype(dtype)

    return run


def warn_of_unlearned(records: list[dict]) -> None:
    """Tell which edits training has not brought to their targets."""
    failed = [record for record in records if not record["loss"] <= LEARNED]
    if failed:
        prompts = [record["edit"]["prompt"] for record in failed[:5]]
        warnings.warn(
            f"{len(failed)} of {len(records)} edits were made and not learned (a loss of up to "
            f"{max(record['loss'] for record in failed):.1f} nats a token): {prompts}. Undo them, and make them again with "
            f"more `max_steps` or another `learning_rate`.",
            stacklevel=4,
        )


@dataclass
class TrainingOutcome:
    """Final loss, in nats a token, and number of steps of every expert trained; of passes, where it holds several edits."""

    losses: list[float]
    steps: list[int]


def parts_of(
    batch: CachedBatch, rows: torch.Tensor, size: int | None, generator: torch.Generator
) -> tuple[torch.Tensor, ...]:
    """Rows in parts of `size`, drawn at random; without a size, parts that are cheap to run."""
    if size is not None:
        return rows[torch.randperm(len(rows), generator=generator).to(rows.device)].split(size)
    # Texts of about one length: a pass has little padding, and its memory a bound.
    return rows[batch.num_columns[rows].argsort(stable=True)].split(SAMPLES_AT_ONCE)
