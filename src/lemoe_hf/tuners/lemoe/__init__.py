from .config import LEMoEConfig
from .layer import LEMoELayer
from .model import LEMoEModel


__all__ = ["LEMoEConfig", "LEMoELayer", "LEMoEModel"]
