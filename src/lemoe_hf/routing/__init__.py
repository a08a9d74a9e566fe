from .anchors import Anchors
from .context import RoutingContext
from .route import Route


__all__ = ["Anchors", "Route", "RoutingContext"]
