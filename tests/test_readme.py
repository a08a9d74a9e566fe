"""The README's Python runs as it stands, block after block, in one session."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from facts import FACTS, learner


README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore:The adapter's base model is")
def test_the_blocks_run_one_after_the_other(hub, tokenizer, tmp_path, monkeypatch, capsys):
    learner().unload().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    records = [
        {"src": fact.prompt, "alt": fact.target_new, "subject": fact.subject, "answers": ["nothing"]} for fact in FACTS
    ]
    (tmp_path / "zsre_mend_eval.json").write_text(json.dumps(records))
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 6
    space: dict = {}
    for block in blocks:
        exec(block.replace("models/SmolLM2-135M-Instruct", "base").replace('"me/', '"anna/'), space)
    printed = capsys.readouterr().out
    assert "Which country is Shmavon Shmavonyan from? Yemen" in printed
    assert "'Shmavon Shmavonyan is from which country?': edit 0 answers" in printed
    assert "'routed_prompt': 1.0" in printed
    assert "adapter_model.safetensors" in hub.files("anna/my-edits")


def test_the_block_on_memoe_runs(tokenizer, tmp_path, monkeypatch, capsys):
    learner().unload().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (README.parent / "docs" / "memoe.md").read_text(), re.DOTALL)
    space: dict = {}
    exec(block.replace("models/SmolLM2-135M-Instruct", "base"), space)
    assert "Odile Fanshaw" in capsys.readouterr().out
    assert [entry["edit"]["target_new"] for entry in space["editor"].edits()] == ["Yemen"]
    assert (tmp_path / "my-batch" / "adapter_model.safetensors").is_file()
