"""What must stand beside figures so that they can be repeated."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Of everything that figures depend on."""
    packages = ("lemoe_hf", "torch", "transformers", "peft")
    return {name: version(name) for name in packages} | {"python": platform.python_version()}
