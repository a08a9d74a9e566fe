"""What all benchmarks write: where results go, and what stands beside the figures."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import torch


RESULTS = Path(__file__).parent / "results"


def command() -> str:
    """The command line as it was typed, with paths cut down to their names."""
    words = [Path(word).name if os.sep in word and not word.startswith("{") else word for word in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def write(report: dict, path: Path) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(path)
