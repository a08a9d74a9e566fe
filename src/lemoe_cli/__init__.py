"""The command line, in a package of its own: `lemoe --help` must not wait for torch, which `lemoe_hf` imports."""

from .main import app


__all__ = ["app"]
