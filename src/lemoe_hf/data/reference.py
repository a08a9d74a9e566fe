"""Prompts that no edit is about, written for this package: anchors and scales are calibrated against them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def reference_prompts() -> tuple[str, ...]:
    """About two hundred everyday prompts, one a line of `reference_prompts.txt`."""
    text = files("lemoe_hf.data").joinpath("reference_prompts.txt").read_text(encoding="utf-8")
    return tuple(line for line in text.splitlines() if line.strip())
