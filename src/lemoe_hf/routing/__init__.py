from .anchors import Anchors
from .context import Route, RoutingContext


__all__ = ["Anchors", "Route", "RoutingContext"]
