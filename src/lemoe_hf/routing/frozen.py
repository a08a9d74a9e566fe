"""What was committed stays as it was stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn


# Where a buffer has to be moved to grow, room is made for so many times its length.
ROOM = 1.5


class Frozen(nn.Module):
    """
    A module whose buffers are what was committed: they move between devices, but `model.half()` does not round them.

    Rows are appended behind those that are there, in room that was made ahead, so that an edit costs what is new and not what
    is stored. A copy of the module that does not see the new rows goes on as it was.
    """

    def __init__(self) -> None:
        super().__init__()
        self._room: dict[str, Room] = {}

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self

    def append(self, name: str, rows: torch.Tensor) -> None:
        """Append rows, of shape `(n, ...)`, to a buffer."""
        stored = getattr(self, name)
        if not len(rows):
            return
        length, wanted = len(stored), len(stored) + len(rows)
        room = self._room.get(name)
        # Room that another copy has filled, or that was left behind on another device, is of no use.
        if room is None or room.filled != length or wanted > len(room.rows) or not room.holds(stored):
            room = Room(stored.new_empty(max(int(ROOM * wanted), 8), *stored.shape[1:]))
            room.rows[:length] = stored
            self._room = self._room | {name: room}
        room.rows[length:wanted] = rows.detach().to(stored)
        room.filled = wanted
        setattr(self, name, room.rows[:wanted])


class Room:
    """A tensor of which the first `filled` rows are in use."""

    def __init__(self, rows: torch.Tensor):
        self.rows, self.filled = rows, 0

    def holds(self, stored: torch.Tensor) -> bool:
        """Whether a buffer is the beginning of these rows."""
        return stored.data_ptr() == self.rows.data_ptr() and stored.dtype == self.rows.dtype
