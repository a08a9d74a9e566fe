"""The block of docs/elder.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from facts import learner


DOCS = Path(__file__).parent.parent / "docs" / "elder.md"


def test_the_block_runs(tokenizer, tmp_path, monkeypatch, capsys):
    learner().unload().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    small = "ELDERConfig(num_layers=2, depth=0.5)"  # the model of the tests has four layers
    exec(block.replace("models/SmolLM2-135M-Instruct", "base").replace("ELDERConfig()", small), {})
    assert "Which country is Shmavon Shmavonyan from? Yemen" in capsys.readouterr().out
