"""What all benchmarks write: where results go, and what stands beside the figures."""

from __future__ import annotations

import json
import logging
import os
import shlex
import sys
import time
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


def now(device: torch.device) -> float:
    """A clock, in seconds: on a CPU that of the process and all its threads, for which other work counts little."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def log_progress() -> None:
    """Let evaluations tell how far they are."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("lemoe_hf").setLevel(logging.INFO)


def write(report: dict, path: Path) -> None:
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(path)
