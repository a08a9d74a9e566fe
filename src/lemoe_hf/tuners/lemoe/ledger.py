"""Where the list of edits lives."""

from __future__ import annotations

import torch
from torch import nn


class Bytes(nn.Module):
    """Text that must survive wherever an adapter's tensors go: PEFT saves nothing else of a method, Trainer neither."""

    def __init__(self, num_bytes: int = 0):
        super().__init__()
        self.register_buffer("bytes", torch.zeros(num_bytes, dtype=torch.uint8))

    @property
    def text(self) -> str:
        return bytes(self.bytes.cpu().numpy()).decode()

    @text.setter
    def text(self, value: str) -> None:
        self.bytes = self.bytes[:0]
        self.append(value)

    def append(self, value: str) -> None:
        new = torch.tensor(list(value.encode()), dtype=torch.uint8, device=self.bytes.device)
        self.bytes = torch.cat([self.bytes, new])
