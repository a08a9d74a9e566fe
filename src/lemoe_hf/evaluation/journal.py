"""What has been computed, kept in a folder as it comes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


class Journal(dict[str, Any]):
    """
    Values by their keys, and JSON lines of them in a folder, if there is one.

    Every process of a launch writes to a file of its own (`NAME-0.jsonl` and so on) and reads those of all. A line that was
    cut off by an interruption is as if it had not been written.

    Args:
        folder (`str` or `Path`, *optional*): Without it, values are kept as long as the journal lives.
        name (`str`): What is kept.
    """

    def __init__(self, folder: str | Path | None, name: str):
        super().__init__()
        self.file = None if folder is None else Path(folder, f"{name}-{os.environ.get('RANK', 0)}.jsonl")
        if self.file is not None:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            for path in sorted(self.file.parent.glob(f"{name}-*.jsonl")):
                self._read(path)

    def _read(self, path: Path) -> None:
        lines = path.read_text().split("\n")
        for line in lines:
            with suppress(json.JSONDecodeError):
                entry = json.loads(line)
                self[entry["key"]] = entry["value"]
        if lines[-1] and path == self.file:  # what is left of it must not take the next line with it
            self._append("\n")

    def write(self, entries: Iterable[tuple[str, str, Any]]) -> None:
        """Keep values, each with its key and with what it is about, for people to read."""
        lines = []
        for key, about, value in entries:
            self[key] = value
            lines.append(json.dumps({"key": key, "about": about, "value": value}) + "\n")
        self._append("".join(lines))

    def _append(self, text: str) -> None:
        if self.file is not None:
            with self.file.open("a") as file:
                file.write(text)
