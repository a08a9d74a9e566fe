from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from facts import learner


EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> str:
    """Folder of the base model: a tiny random one, or the one that `EXAMPLES_MODEL` names."""
    if "EXAMPLES_MODEL" in os.environ:
        return str(Path(os.environ["EXAMPLES_MODEL"]).resolve())  # the notebook runs in another folder
    folder = tmp_path_factory.mktemp("model")
    learner().unload().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs an example as from the command line, and returns what it prints."""

    def run(name: str, *options: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, "--model", model, *map(str, options)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        text = capsys.readouterr().out
        sys.stdout.write(text)  # for `pytest -rP`, by which `make examples` shows it
        return text

    return run
