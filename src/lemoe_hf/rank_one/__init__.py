from .arguments import RankOneArguments
from .editor import RankOneEditor
from .select import LayerSelection, select_layer
from .update import Update


__all__ = ["LayerSelection", "RankOneArguments", "RankOneEditor", "Update", "select_layer"]
