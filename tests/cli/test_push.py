"""`lemoe push`, against a Hub on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants
from typer.testing import CliRunner

from facts import FACTS, editor_for
from lemoe_cli import app
from lemoe_hf.card import write_figures
from lemoe_hf.editing.save import LOCK


REPORT = {"protocol": "after all edits", "num_edits": 2, "edits_made": 2, "versions": {"torch": "2.9"}}

pytestmark = pytest.mark.filterwarnings("ignore:The adapter's base model is")


@pytest.fixture
def adapter(tokenizer, tmp_path: Path) -> Path:
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    editor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def push(adapter: Path, *options: str, repo: str = "anna/facts", code: int = 0) -> str:
    result = CliRunner().invoke(app, ["push", "--adapter", str(adapter), "--repo", repo, *options])
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.output if code else result.stdout


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_pushed_is_the_folder(hub, adapter):
    write_figures(adapter, REPORT | {"measures": {"reliability": 1.0}})
    before = contents(adapter)
    (row,) = json.loads(push(adapter, "--json"))
    assert (row["repo"], row["revision"]) == ("anna/facts", hub.repositories["anna/facts"].sha("main"))
    files = hub.files("anna/facts")
    assert files.keys() - {".gitattributes"} == before.keys() - {LOCK}
    for name in before.keys() - {"README.md", LOCK}:
        assert files[name] == before[name]
    card = ModelCard(files["README.md"].decode())
    assert "| `reliability` | 1.0000 |" in card.text
    assert card.data.eval_results[0].metric_value == 1.0
    assert contents(adapter) == before


def test_nothing_else_that_lies_in_the_folder_is_pushed(hub, adapter):
    (adapter / "passwords.txt").write_text("secret")
    (adapter / "checkpoint-10").mkdir()
    push(adapter)
    assert {"passwords.txt", "checkpoint-10"}.isdisjoint(hub.files("anna/facts"))


def test_texts_can_be_kept_back(hub, adapter):
    before = contents(adapter)
    assert "without the texts" in push(adapter, "--no-edits")
    files = hub.files("anna/facts")
    assert "edits.jsonl" not in files
    for fact in FACTS[:2]:
        for text in (fact.prompt, fact.target_new, fact.subject):
            assert not [name for name, content in files.items() if text.encode() in content], text
    assert contents(adapter) == before


def test_what_was_pushed_without_texts_can_be_inspected(hub, adapter, tmp_path):
    push(adapter, "--no-edits")
    (tmp_path / "there").mkdir()
    for name, content in hub.files("anna/facts").items():
        (tmp_path / "there" / name).write_bytes(content)
    result = CliRunner().invoke(app, ["inspect", "--adapter", str(tmp_path / "there"), "--json"])
    assert [(row["id"], row["expert"], row["prompt"]) for row in json.loads(result.stdout)] == [(0, 0, ""), (1, 1, "")]


def test_a_new_repository_can_be_private_and_a_branch_of_ones_own(hub, adapter):
    push(adapter, "--private", "--revision", "draft", repo="facts")
    repository = hub.repositories["anna/facts"]
    assert repository.private
    assert "adapter_config.json" in hub.files("anna/facts", "draft")
    assert "adapter_config.json" not in hub.files("anna/facts", "main")


def test_without_a_token_it_says_how_to_get_one(hub, adapter, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    output = push(adapter, code=1)
    assert "There is no token of the Hugging Face Hub" in output
    assert "`hf auth login`" in output
    assert not hub.repositories


def test_a_token_that_is_not_valid(hub, adapter, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    output = push(adapter, code=1)
    assert "error: The Hub does not accept the token (Invalid credentials in Authorization header)." in output
    assert not hub.repositories


def test_a_repository_of_somebody_else(hub, adapter):
    assert "error: The token may not write to bertha/facts" in push(adapter, repo="bertha/facts", code=1)


def test_a_name_that_no_repository_can_have(hub, adapter):
    assert "error: Repo id must" in push(adapter, repo="a/b/c", code=1)


def test_a_folder_without_an_adapter(hub, tmp_path):
    assert "nothing holds no adapter: there is no adapter_config.json" in push(tmp_path / "nothing", code=1)
    assert not hub.repositories


def test_a_folder_with_half_an_adapter(hub, adapter):
    (adapter / "adapter_model.safetensors").unlink()
    assert "is incomplete: there is no adapter_model.safetensors" in push(adapter, code=1)
    assert not hub.repositories


def test_a_hub_that_is_not_there(hub, adapter, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "error: The Hugging Face Hub cannot be reached" in push(adapter, code=1)
