"""Promises of the project as a whole: imports run one way, importing does nothing else, figures come from files."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "lemoe_hf"

# From the leaves up; a part may import those before it.
ORDER = [
    "after_peft",
    "registration",
    "display",
    "card",
    "structure",
    "routing",
    "data",
    "adapter",
    "tuners",
    "generation",
    "moments",
    "editing",
    "evaluation",
    "rank_one",
    "diagnostics",
    "__init__",
    "cli",
]


def part_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The parts of the package that a file imports, other than its own."""
    parts = set()
    package = path.relative_to(SOURCE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = package[: len(package) - node.level + 1]
            names = [node.module] if node.module else [alias.name for alias in node.names]
            parts |= {(*above, *name.split("."))[0] for name in names}
    return parts - {part_of(path)}


def test_imports_run_one_way():
    for path in SOURCE.rglob("*.py"):
        allowed = ORDER[: ORDER.index(part_of(path))]
        upwards = imported(path) & {part for part in ORDER if part not in allowed}
        assert not upwards, f"{path.relative_to(ROOT)} imports {upwards}"


def test_importing_leaves_the_process_as_it_was():
    code = """
import logging, random, numpy, torch, peft, datasets
from transformers import Trainer  # what it draws at its own import is not ours
states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
handlers = list(logging.root.handlers)
import lemoe_hf
assert states == (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
assert handlers == logging.root.handlers
import importlib
importlib.reload(lemoe_hf)
from peft import PeftType
assert PeftType("LEMOE") == PeftType.LEMOE == "LEMOE"
"""
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    assert output.stdout == ""


@pytest.mark.parametrize("page", ["README.md", "docs/measured.md"])
def test_every_measure_comes_from_a_result(monkeypatch, page):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = importlib.import_module("tables")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert ROOT / page in tables.PAGES
    assert len(tables.TABLE.findall(text)) == text.count("<!-- results:") > 1
    assert tables.filled(text) == text
    wrong = tables.TABLE.sub(lambda match: match[1] + match[2] + re.sub(r"\| 0\.\d+", "| 0.123", match[3]), text)
    assert wrong != text == tables.filled(wrong)
