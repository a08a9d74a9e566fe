"""What was committed stays as it was stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import nn


class Frozen(nn.Module):
    """A module whose buffers are what was committed: they move between devices, but `model.half()` does not round them."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        before = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, buffer in self.named_buffers():
            if buffer.dtype != before[name].dtype:
                setattr(self, name, before[name].to(buffer.device))
        return self
