"""What edits answer, so that it is known when they have: the tokens of their targets."""

from __future__ import annotations

import torch

from .frozen import Frozen


class Targets(Frozen):
    """
    Axes: `n` tokens of all targets, `a` targets; an edit may have several, one for each way its text is cut into tokens.

    Buffers: `tokens` (n), `lengths` (a), `edit` (a), ascending.
    """

    sizes = ("num_targets", "num_target_tokens")

    tokens: torch.Tensor
    lengths: torch.Tensor
    edit: torch.Tensor

    def __init__(self, num_targets: int = 0, num_tokens: int = 0):
        super().__init__()
        self.register_buffer("tokens", torch.zeros(num_tokens, dtype=torch.int32))
        self.register_buffer("lengths", torch.zeros(num_targets, dtype=torch.int32))
        self.register_buffer("edit", torch.zeros(num_targets, dtype=torch.int32))

    def __len__(self) -> int:
        return self.lengths.shape[0]

    @classmethod
    def check(cls, state: dict[str, torch.Tensor]) -> None:
        """
        Raises:
            ValueError: If tensors that are to be loaded are no targets.
        """
        if len(state["lengths"]) != len(state["edit"]) or int(state["lengths"].sum()) != len(state["tokens"]):
            raise ValueError("The adapter's targets are damaged: their lengths do not go with their tokens.")

    def add(self, targets: list[tuple[int, tuple[int, ...]]]) -> None:
        """Append targets, each with its edit; those already stored stay as they are."""
        flat = [token for _, tokens in targets for token in tokens]
        new: dict[str, list[int]] = {
            "tokens": flat,
            "lengths": [len(tokens) for _, tokens in targets],
            "edit": [edit for edit, _ in targets],
        }
        for name, values in new.items():
            self.append(name, torch.tensor(values, dtype=torch.int32))

    def remove(self, edit: int) -> None:
        keep = self.edit != edit
        self.tokens = self.tokens[torch.repeat_interleave(keep, self.lengths.long())]
        self.lengths, self.edit = self.lengths[keep], self.edit[keep]

    def of(self, edit: int) -> tuple[tuple[int, ...], ...]:
        """The targets of an edit; none where they are not known."""
        bounds = torch.tensor([edit, edit + 1], dtype=torch.int32, device=self.edit.device)
        low, high = torch.searchsorted(self.edit, bounds).tolist()
        if low == high:
            return ()
        first = int(self.lengths[:low].sum())
        lengths = self.lengths[low:high].tolist()
        flat = self.tokens[first : first + sum(lengths)].tolist()
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        return tuple(tuple(flat[end - length : end]) for length, end in zip(lengths, ends, strict=True))
