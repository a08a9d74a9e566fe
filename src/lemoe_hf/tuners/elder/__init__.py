from .config import ELDERConfig
from .layer import ELDERLayer
from .model import ELDERModel


__all__ = ["ELDERConfig", "ELDERLayer", "ELDERModel"]
