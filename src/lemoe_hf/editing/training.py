"""What training an edit needs, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .activations import CachedBatch


# Rows of one forward and backward pass.
SAMPLES_AT_ONCE = 64


class EditingError(RuntimeError):
    """Training an edit failed; the model is as it was before."""

    def __init__(self, message: str, experts: list[int]):
        super().__init__(message)
        self.experts = experts

    def __reduce__(self):  # it goes from one process to the others
        return type(self), (str(self), self.experts)


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
