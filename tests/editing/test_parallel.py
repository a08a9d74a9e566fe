"""Two processes on the CPU, started for real. This file is also what they run: `worker` in each of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from facts import FACTS, editor_for, learner, plain
from lemoe_cli import app
from lemoe_hf import EditEvaluator, EditingError, LifelongEditor
from lemoe_hf.editing import lemoe as editing
from lemoe_hf.editing import lemoe_training as training
from lemoe_hf.editing.parallel import processes
from tiny import adapter_state, assert_same


# The first process measures one and three, which have no rephrasing; one asks about a subject, and three has a wrong target.
MEASURED = [
    replace(FACTS[0], locality_prompt="Is Zembla far from", locality_ground_truth="the sea"),
    replace(FACTS[1], rephrase_prompt="Zembla has a capital, and it is called"),
    replace(FACTS[5], target_new="Frisian and Latin", locality_prompt="Where does the train stop?"),
]
# Bit for bit the experts are not the same, where those of a group train beside fewer others.
CLOSE = {"rtol": 1e-3, "atol": 1e-4}


def failed(editor, monkeypatch, failure) -> tuple[str, type, bool]:
    """Edit, with something that fails in training: what was raised, and whether nothing was kept."""
    editor.prepare()  # what is learned of the model and its tokens stays
    state, entries = adapter_state(editor.model), editor.edits()
    step_losses = training.step_losses
    monkeypatch.setattr(training, "step_losses", lambda *args: failure(args[2], *step_losses(*args)))
    with pytest.raises(RuntimeError) as error:
        editor.edit(FACTS[:3])
    monkeypatch.undo()
    assert_same(adapter_state(editor.model), state)
    return str(error.value), type(error.value), editor.edits() == entries


def worker(tokenizer) -> dict:
    """Edit and measure, in each of two processes as in a single one."""
    here, monkeypatch, found = processes(), pytest.MonkeyPatch(), {}
    mine = torch.arange(3)[here.process_index :: here.num_processes]
    editor = editor_for(tokenizer, plain(share_out=True, batch_size=3), layers_to_transform=[1, 3])

    def breaks(batch, losses, extra):
        return torch.where(mine[batch.expert] == 1, torch.nan, losses), extra

    def runs_out(batch, losses, extra):
        if here.process_index == here.num_processes - 1:
            raise torch.OutOfMemoryError("too large")
        return losses, extra

    found["broken"] = failed(editor, monkeypatch, breaks)
    found["too large"] = failed(editor, monkeypatch, runs_out)

    trained = []

    def spy(tuner, name, batch, arguments):
        trained.append(len(batch.expert.unique()))
        return train_experts(tuner, name, batch, arguments)

    train_experts = editing.train_experts
    monkeypatch.setattr(editing, "train_experts", spy)
    records = [*editor.edit(FACTS[:5]).records, *editor.edit(FACTS[5]).records]
    monkeypatch.undo()
    found |= {"state": adapter_state(editor.model), "records": records, "trained": trained}
    found["answers"] = editor.answers([fact.prompt for fact in FACTS], 8)
    for name, edits in (("all", MEASURED), ("one", MEASURED[:1])):
        found[f"measures of {name}"] = EditEvaluator(edits, share_out=True)(editor.model, tokenizer)
    for config in ({"edits_per_expert": 2}, {"routing": "kv_anchor"}):
        editor = editor_for(tokenizer, plain(share_out=True), expert_dim=16, **config)
        editor.edit(FACTS[:3])
        found[str(config)] = adapter_state(editor.model)
    return found


def edit_and_evaluate(folder: Path, adapter: str, launcher: list[str] | None = None) -> list[dict]:
    """The command line, in this process or by a launcher: rows of the edits made."""
    command = ["edit", "--model", folder, "--edits", folder / "edits.jsonl", "--adapter", folder / adapter]
    return json.loads(run([str(part) for part in [*command, "--step", "2", "--json"]], launcher))


def run(command: list[str], launcher: list[str] | None = None) -> str:
    if launcher is None:
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
        return result.stdout
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    command, pipe = [sys.executable, "-m", *launcher, *command], subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
        try:
            stdout, stderr = process.communicate(timeout=120)
        finally:
            process.terminate()  # should processes wait for each other: a launcher ends what it has started
    assert process.returncode == 0, stderr
    return stdout


def write(folder: Path, edits) -> None:
    (folder / "edits.jsonl").write_text("".join(json.dumps(edit.to_dict()) + "\n" for edit in edits))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    """A base model, and an adapter with two edits made by one process."""
    folder = tmp_path_factory.mktemp("base")
    learner().unload().save_pretrained(folder)  # on a model that cannot learn an edit, its last steps are chaos
    tokenizer.save_pretrained(folder)
    write(folder, MEASURED[:2])
    edit_and_evaluate(folder, "adapter")
    return folder


@pytest.fixture(scope="module")
def alone(tokenizer) -> dict:
    return worker(tokenizer)


@pytest.fixture(scope="module")
def together(folder: Path) -> list[dict]:
    run([__file__, str(folder)], ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"])
    return [torch.load(folder / f"{process}.pt", weights_only=False) for process in range(2)]


def test_each_process_trains_its_share(alone, together):
    # Groups of three, two and a single one.
    assert alone["trained"] == [3, 2, 1]
    assert [each["trained"] for each in together] == [[2, 1, 1], [1, 1]]


def test_every_process_ends_with_the_adapter_of_a_single_one(alone, together):
    for each in together:
        assert each["answers"] == alone["answers"] == together[0]["answers"]
        for record, expected in zip(each["records"], alone["records"], strict=True):
            assert record == expected | {"loss": pytest.approx(expected["loss"], rel=1e-3)}
        assert_same(each["state"], together[0]["state"])
        for name, tensor in each["state"].items():
            if "_bank" in name:
                torch.testing.assert_close(tensor, alone["state"][name], **CLOSE)
            elif not name.endswith("stamp.default.digest"):  # anchors, ledger and what is opened next
                assert torch.equal(tensor, alone["state"][name]), name
    assert together[0]["records"] == together[1]["records"]


def test_a_failure_in_one_process_is_raised_in_all(alone, together):
    for each in (alone, *together):
        message, error, nothing_kept = each["broken"]
        assert error is EditingError
        assert "nan after 0 steps" in message
        assert [fact.prompt in message for fact in FACTS[:3]] == [False, True, False]
        assert nothing_kept
    for each in together:
        message, _, nothing_kept = each["too large"]
        assert message == "OutOfMemoryError in process 1: too large"
        assert nothing_kept


@pytest.mark.parametrize("config", [{"edits_per_expert": 2}, {"routing": "kv_anchor"}], ids=str)
def test_experts_that_are_not_independent_are_trained_by_all(alone, together, config):
    for each in together:
        assert_same(each[str(config)], alone[str(config)])


@pytest.mark.parametrize("edits", ["all", "one"])
def test_every_process_has_the_measures_of_a_single_one(alone, together, edits):
    expected = alone[f"measures of {edits}"]
    assert expected["num_edits"] == {"all": 3, "one": 1}[edits]
    assert ("generality" in expected) == (edits == "all")
    assert expected["locality_kl"] > 0
    assert expected["free_reliability"] == {"all": 2 / 3, "one": 1}[edits]
    for each in together:
        assert each[f"measures of {edits}"] == pytest.approx(expected, rel=1e-4)
        assert list(each[f"measures of {edits}"]) == list(expected)


def test_only_the_main_process_prints_and_writes(folder, together):
    expected = json.loads(run(["evaluate", "--adapter", str(folder / "adapter"), "--json"]))
    assert json.loads(together[0]["measures"]) == pytest.approx(expected, rel=1e-4)
    assert [row["id"] for row in json.loads(together[0]["rows"])] == [0, 1]
    assert together[1]["measures"] == together[1]["rows"] == ""
    assert [each["saved"] for each in together] == [2, 0]


def test_the_command_line_grows_an_adapter_as_a_single_process_does(folder):
    for name in ("alone", "launched"):
        shutil.copytree(folder / "adapter", folder / name)
    write(folder, [*MEASURED[:2], *FACTS[2:5]])
    launcher = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    rows = edit_and_evaluate(folder, "launched", [*launcher, "-m", "lemoe_hf.cli"])
    for row, expected in zip(rows, edit_and_evaluate(folder, "alone"), strict=True):
        assert row == expected | {"loss": pytest.approx(expected["loss"], abs=2e-4)}
    assert [row["id"] for row in rows] == [2, 3, 4]
    for name in ("adapter_config.json", "edits.jsonl"):
        assert (folder / "launched" / name).read_text() == (folder / "alone" / name).read_text()
    launched, alone = (load_file(folder / name / "adapter_model.safetensors") for name in ("launched", "alone"))
    torch.testing.assert_close(launched, alone)


def printed(*command: object) -> str:
    with redirect_stdout(StringIO()) as text:
        app([str(part) for part in command], standalone_mode=False)
    return text.getvalue()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, saved = Path(sys.argv[1]), []
    found = worker(AutoTokenizer.from_pretrained(folder))
    found["measures"] = printed("evaluate", "--adapter", folder / "adapter", "--json")
    save = LifelongEditor.save_pretrained
    LifelongEditor.save_pretrained = lambda *args: saved.append(save(*args))
    edits = ["--edits", folder / "edits.jsonl", "--step", 1]
    found["rows"] = printed("edit", "--model", folder, *edits, "--adapter", folder / "new", "--json")
    torch.save(found | {"saved": len(saved)}, folder / f"{processes().process_index}.pt")
