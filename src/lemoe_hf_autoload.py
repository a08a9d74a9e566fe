"""
Import lemoe_hf when PEFT is asked for one of its methods, so that a program which has never heard of it can load an adapter.

PEFT has no plug-in mechanism, so `lemoe_hf-autoload.pth` has every interpreter import this module. It must not import anything
that Python has not imported by then, and it acts when it is imported: a virtual environment reads that file twice.
"""

import os
import sys


METHODS = ("LEMOE", "MEMOE", "ELDER")
TABLE = "PEFT_TYPE_TO_CONFIG_MAPPING"


class Methods(dict):
    """PEFT's table of methods, in which whoever loads an adapter looks up the method first."""

    def __missing__(self, name):
        if name in METHODS:
            import lemoe_hf  # noqa: F401
        if name not in self:
            raise KeyError(name)
        return self[name]


class Finder:
    """Puts `Methods` in the place of PEFT's own table before any other module can get hold of it.

    The method itself is left for later. PEFT is imported in the middle of transformers' modules, `Trainer`'s for one, which
    lemoe_hf could not import at that moment.
    """

    def find_spec(self, name, path=None, target=None):
        if name != "peft.mapping":
            return None
        others = sys.meta_path[sys.meta_path.index(self) + 1 :]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                if TABLE in vars(module):
                    setattr(module, TABLE, Methods(getattr(module, TABLE)))

            spec.loader.exec_module = exec_module
        return spec


if os.environ.get("LEMOE_HF_AUTOLOAD") != "0":
    sys.meta_path.insert(0, Finder())
