from .config import MEMoEConfig
from .layer import MEMoELayer
from .model import MEMoEModel


__all__ = ["MEMoEConfig", "MEMoELayer", "MEMoEModel"]
