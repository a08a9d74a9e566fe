"""The command line. It imports `lemoe_hf` when a command runs: `lemoe --help` must not wait for torch."""

from .main import app


__all__ = ["app"]
