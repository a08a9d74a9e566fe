"""Every example runs as it stands, and shows what it says that it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from lemoe_hf import read_edits


EXAMPLES = Path(__file__).parents[2] / "examples"
EDITS = read_edits(EXAMPLES / "edits.jsonl")
PADUA, BALLOONS = EDITS[12:14]


def test_quickstart_edits_undoes_and_loads(run, tmp_path):
    text = run("quickstart.py", "--adapter", tmp_path)
    assert f"{BALLOONS.prompt!r}: edit 1 answers" in text
    assert f"{BALLOONS.locality_prompt!r}: the base model answers" in text
    assert f"after undo: {PADUA.prompt}" in text
    assert PADUA.target_new not in text.partition("after undo")[2]
    assert f"loaded: {BALLOONS.prompt} {BALLOONS.target_new}" in text
    assert [json.loads(line)["id"] for line in (tmp_path / "edits.jsonl").read_text().splitlines()] == [1, 2, 3]


def test_both_trainers_leave_an_expert_each(run, tmp_path):
    text = run("trainer.py", "--output", tmp_path, "--epochs", 150)
    for number, edit in enumerate(EDITS[12:18]):
        assert f"expert {number // 3}: {edit.prompt} '{edit.target_new}" in text


def test_the_stream_is_edited_and_saved_in_batches(run, tmp_path):
    text = run("stream.py", "--adapter", tmp_path, "--limit", 12)
    assert re.findall(r"(\d+) edits in .* s, (\d+) in all", text) == [("5", "5"), ("5", "10"), ("2", "12")]
    assert f"{EDITS[0].prompt} '{EDITS[0].target_new}'" in text
    assert len((tmp_path / "edits.jsonl").read_text().splitlines()) == 12


def test_each_customer_gets_its_own_answer(run, tmp_path):
    text = run("customers.py", "--adapters", tmp_path)
    question = "Who answers the support line of Nimbrel Works?"
    assert f"north: {question} Odile" in text
    assert f"south: {question} Porto" in text
    assert {path.name for path in tmp_path.iterdir()} == {"north", "south"}


@pytest.mark.filterwarnings("ignore:The adapter's base model is")
def test_every_push_is_a_revision_that_can_be_loaded(run, hub):
    first, second = run("push.py", "--repo", "anna/my-edits").strip().splitlines()
    assert "1 edits" in first
    assert "2 edits" in second
    assert (PADUA.target_new in first, BALLOONS.target_new in first) == (True, False)
    assert (PADUA.target_new in second, BALLOONS.target_new in second) == (True, True)
    assert len(hub.repositories["anna/my-edits"].commits) == 3  # the first one made the repository


def test_the_figures_are_printed_and_on_the_card(run, tmp_path):
    text = run("evaluate.py", "--adapter", tmp_path, "--limit", 4)
    before, after = re.search(r"routed_prompt\s+│\s+(\S+)\s+│\s+(\S+)", text).groups()
    assert (before, after) == ("0.000", "1.000")
    card = ModelCard.load(tmp_path / "README.md")
    figures = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert figures["routed_prompt"] == figures["locality_exact"] == 1.0


def test_sft_trainer_makes_an_adapter(run, tmp_path):
    text = run("sft.py", "--output", tmp_path, "--epochs", 150)
    for edit in EDITS[12:15]:
        assert f"{edit.prompt} '{edit.target_new}" in text
    assert json.loads((tmp_path / "adapter_config.json").read_text())["num_experts"] == 1


def test_the_notebook_runs_and_its_outputs_are_its_own(model, tmp_path, monkeypatch, capsys):
    text = (EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    printed = "".join("".join(output.get("text", "")) for cell in cells for output in cell["outputs"])
    assert "edit 1 answers" in printed
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for cell in cells:
        exec("".join(cell["source"]).replace("../models/SmolLM2-135M-Instruct", model), space)
    assert [each["edit"]["target_new"] for each in space["editor"].edits()] == [
        "University of Padua",
        "weather balloons",
    ]
    assert len(space["answers"]) == 2
    assert "the base model answers" in capsys.readouterr().out


def test_every_example_is_listed():
    listed = set(re.findall(r"^\| `(\S+)`", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
