"""Import a module as soon as PEFT is there: at once, or at the end of PEFT's own import."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any


def import_with_peft(name: str) -> None:
    """
    Import a module if PEFT has been imported, and otherwise when it is.

    So whoever has PEFT has our methods too, whichever was imported first, and who needs no PEFT does not get it.
    """
    if sys.modules.get("peft"):
        import_module(name)
    else:
        sys.meta_path.insert(0, Finder(name))


class Finder:
    """
    Finds PEFT where other finders do, and imports a module behind it.

    What that module needs of transformers must be no more than what PEFT itself does, which is imported in the middle of
    transformers' modules, `Trainer`'s for one. Where that module is under way it is left alone: it may be what has imported
    PEFT, and in another thread it waits for PEFT.
    """

    def __init__(self, name: str):
        self.name = name

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "peft":
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                if self.name not in sys.modules:
                    import_module(self.name)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
