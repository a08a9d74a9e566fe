"""The Python of the pages about rank-one edits and superposition runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rank_one.wrote import EDITS, steep


DOCS = Path(__file__).parent.parent / "docs"
PROMPT = '"The mother tongue of Danielle Darrieux is", "English", subject="Danielle Darrieux"'
# A tiny random model can be told nothing of Danielle Darrieux.
FACT = f'"{EDITS[0].prompt}", "{EDITS[0].target_new}", subject="{EDITS[0].subject}"'


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("wilke.md", ["layer  success", "<-", "[' is']"]),
        ("superposition.md", ["3 facts at layer 1: kurtosis", "'damage'"]),
    ],
)
def test_the_block_runs(page: str, said: list[str], tokenizer, tmp_path, monkeypatch, capsys):
    steep().save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert block.count(PROMPT) == 1
    exec(block.replace("models/SmolLM2-135M-Instruct", "base").replace(PROMPT, FACT), {})
    printed = capsys.readouterr().out
    assert [part for part in said if part not in printed] == []
