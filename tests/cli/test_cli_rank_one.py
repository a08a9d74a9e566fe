"""The commands about rank-one edits, on a tiny model in a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftModel
from test_cli import run

from lemoe_cli import rank_one
from lemoe_hf import RankOneArguments
from rank_one.wrote import EDITS, arguments, steep
from tiny import SENTENCES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    steep().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    edits, texts = tmp_path / "edits.jsonl", tmp_path / "texts.txt"
    edits.write_text("".join(json.dumps(edit.to_dict()) + "\n" for edit in EDITS))
    texts.write_text("\n".join(SENTENCES))
    return edits, texts


def test_a_report_in_words_and_in_json(base: Path, files, tmp_path: Path):
    edits, texts = files
    common = ("superposition", base, "--edits", edits, "--data", texts)
    told = json.loads(run(*common, "--layer", 2, "--profile", "--json"))
    assert told["layer"] == 2
    assert told["num_facts"] == 4
    assert len(told["top_pairs"]) == 6
    assert [row["layer"] for row in told["profile"]] == [0, 1, 2, 3]
    said = run(*common, "--protect", edits)
    assert "4 facts at layer 1" in said
    assert "What the edits would do to others" in said
    assert "has 4 layers" in run(*common, "--layer", 9, code=1)


def test_edits_become_a_lora_adapter_that_grows(base: Path, files, tmp_path: Path, monkeypatch):
    edits, folder = files[0], tmp_path / "lora"
    quick = arguments()
    monkeypatch.setattr(
        rank_one, "RankOneArguments", lambda layer: RankOneArguments(**(vars(quick) | {"layer": layer}))
    )
    common = ("edit", "--model", base, "--adapter", folder, "--method", "rome", "--layer", 1, "--json")
    rows = json.loads(run(*common, "--edits", edits, "--step", 3))
    assert [row["layer"] for row in rows] == [1] * 4
    assert json.loads(run(*common, "--edits", edits)) == []
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "The bridge of Aldona", "target_new": "is", "subject": "Aldona"}) + "\n")
    assert len(json.loads(run(*common, "--edits", more))) == 1
    assert list(PeftModel.from_pretrained(steep(), folder).peft_config["default"].rank_pattern.values()) == [5]


def test_options_that_do_not_go_together(base: Path, files, tmp_path: Path):
    common = ("edit", "--model", base, "--edits", files[0], "--adapter", tmp_path / "lora")
    assert "name it with `--layer`" in run(*common, "--method", "rome", code=1)
    assert "leave out `--layer`" in run(*common, "--method", "wilke", "--layer", 1, code=1)
    assert "made one by one" in run(*common, "--method", "wilke", "--order", "kmeans", code=1)
    assert "holds no rank-one edits" in run(*common[:-1], tmp_path, "--method", "wilke", code=1)
