"""Where the list of edits lives."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..routing.frozen import Frozen


KEY = "_ledger.bytes"  # behind the prefix of a method


class Bytes(Frozen):
    """Text that must survive wherever an adapter's tensors go: PEFT saves nothing else of a method, Trainer neither."""

    def __init__(self, num_bytes: int = 0):
        super().__init__()
        self.register_buffer("bytes", torch.zeros(num_bytes, dtype=torch.uint8))

    def extra_repr(self) -> str:
        return f"num_bytes={len(self.bytes)}"

    @property
    def text(self) -> str:
        return bytes(self.bytes.cpu().numpy()).decode()

    @text.setter
    def text(self, value: str) -> None:
        self.bytes = self.bytes[:0]
        self.write(value)

    def write(self, value: str) -> None:
        """Append text."""
        if value:
            self.append("bytes", torch.frombuffer(bytearray(value.encode()), dtype=torch.uint8))


def entries_of(text: str) -> list[dict]:
    """The entries of a ledger's text, one a line."""
    return [json.loads(line) for line in text.split("\n") if line]  # texts may hold other line separators


def lines_of(entries: list[dict]) -> str:
    """A ledger's text."""
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def read_ledger(path: Path) -> list[dict]:
    """
    The ledger of a saved adapter, from its weights, without the base model.

    Raises:
        ValueError: If the file is not there, is damaged, or belongs to another method.
    """
    if not path.is_file():
        raise ValueError(f"There is no {path}: the adapter is not complete.")
    try:
        with safe_open(path, "pt") as file:
            key = next((key for key in file.keys() if key.endswith(KEY)), None)  # noqa: SIM118
            if key is None:
                raise ValueError(f"{path} is not the file of an adapter of edits: it has no ledger.")
            return entries_of(file.get_tensor(key).numpy().tobytes().decode())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it from a copy.") from None


def withhold_texts(path: Path) -> int:
    """
    Leave nothing of a saved adapter's ledger but the `id` and the `expert` of each edit.

    Returns:
        The number of bytes that the ledger has now, which the config must tell.
    """
    kept = [{"id": entry["id"], "expert": entry["expert"]} for entry in read_ledger(path)]
    ledger = Bytes()
    ledger.write(lines_of(kept))
    tensors = load_file(path)
    save_file(
        {key: ledger.bytes if key.endswith(KEY) else tensor for key, tensor in tensors.items()}, path, {"format": "pt"}
    )
    return len(ledger.bytes)
