"""What an import of this package brings along, and that PEFT knows its methods whichever is imported first."""

from __future__ import annotations

import ast
import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import lemoe_hf


ROUTING = ["router", "text", "passes", "layout", "anchors", "relations", "targets", "vocabulary", "scope"]


def printed(code: str) -> list[str]:
    """What a new interpreter prints, into which nothing but the sources has found its way."""
    settings = os.environ | {"LEMOE_HF_AUTOLOAD": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


# ------------------------------------------------------------------------------------------------------ what comes along


@pytest.mark.parametrize("modules", [["lemoe_hf"], [f"lemoe_hf.routing.{name}" for name in ROUTING]])
def test_neither_peft_nor_transformers(modules):
    code = (
        f"import sys, {', '.join(modules)}; print(*{{'peft', 'transformers', 'lemoe_hf.tuners'}} & set(sys.modules))"
    )
    assert printed(code) == []


def test_the_method_comes_without_trainer():
    code = "import sys, lemoe_hf, peft; print('lemoe_hf.tuners' in sys.modules, 'transformers.trainer' in sys.modules)"
    assert printed(code) == ["True", "False"]


# -------------------------------------------------------------------------------------------------------- what PEFT knows

KNOWN = """
import peft, peft.mapping
from peft.utils import PeftType
print(PeftType.LEMOE, *("LEMOE" in vars(peft.mapping)[f"PEFT_TYPE_TO_{name}_MAPPING"] for name in ("CONFIG", "TUNER")))
print(type(peft.PeftConfig.from_peft_type(peft_type="LEMOE")).__module__)
"""
ORDERS = {
    "before PEFT": "import lemoe_hf",
    "behind PEFT": "import peft, lemoe_hf",
    "a name of it": "from lemoe_hf import LifelongEditor",
    "its method": "import lemoe_hf.tuners.lemoe.config",
    "what imports PEFT by itself": "import lemoe_hf.editing.push",
    # `Trainer`'s module imports PEFT before it has defined what the editors import from it.
    "before Trainer": "import lemoe_hf; from transformers import Trainer",
    "behind Trainer": "from transformers import Trainer; import lemoe_hf",
    "routing alone": "import lemoe_hf.routing.router",
    "twice": "import importlib, lemoe_hf; importlib.reload(lemoe_hf)",
}


@pytest.mark.parametrize("first", ORDERS.values(), ids=ORDERS)
def test_peft_knows_the_method_whatever_is_imported_first(first):
    assert printed(first + KNOWN) == ["PeftType.LEMOE", "True", "True", "lemoe_hf.tuners.lemoe.config"]


def test_threads_may_import_both_at_once():
    code = """
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
import lemoe_hf
names = ["peft", "lemoe_hf.tuners.lemoe", "lemoe_hf.editing"]
with ThreadPoolExecutor(3) as threads:
    list(threads.map(import_module, names))
"""
    assert printed(code + KNOWN)[:3] == ["PeftType.LEMOE", "True", "True"]


def test_without_peft_the_rest_can_be_imported():
    code = "import sys; sys.modules['peft'] = None; from lemoe_hf.routing import router; from lemoe_hf import Adapter"
    assert printed(code) == []


# -------------------------------------------------------------------------------------------------------------- its names


@pytest.mark.parametrize("name", lemoe_hf.__all__)
def test_every_name_is_there(name):
    value = getattr(lemoe_hf, name)
    assert name in dir(lemoe_hf)
    assert value is getattr(sys.modules[value.__module__], name)
    assert pickle.loads(pickle.dumps(value)) is copy.deepcopy(value) is value


def test_checkers_are_told_the_same_names():
    tree = ast.parse(Path(lemoe_hf.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert told == {(module, name) for module, names in lemoe_hf._MODULES.items() for name in names}
    assert sorted(name for _, name in told) == sorted(lemoe_hf.__all__)


def test_all_of_them_at_once():
    code = "from lemoe_hf import *; import lemoe_hf; print(set(lemoe_hf.__all__) <= set(globals()))"
    assert printed(code) == ["True"]


def test_its_modules_are_attributes():
    code = "import lemoe_hf; print(lemoe_hf.editing.push.__name__, lemoe_hf.data.__name__, lemoe_hf.tuners.__name__)"
    assert printed(code) == ["lemoe_hf.editing.push", "lemoe_hf.data", "lemoe_hf.tuners"]


def test_other_names_are_missing():
    assert not hasattr(lemoe_hf, "LEMoEConfigs")
    with pytest.raises(ImportError, match="cannot import name 'nothing' from 'lemoe_hf'"):
        from lemoe_hf import nothing  # noqa: F401
