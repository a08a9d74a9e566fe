"""The command line, on a tiny model in a folder."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import lemoe_hf
from lemoe_cli import app, main
from lemoe_cli.quiet import be_quiet
from lemoe_hf import Edit, LifelongEditor, plan_order
from lemoe_hf.editing.ordering import OrderBy
from lemoe_hf.evaluation import accuracy
from tiny import tiny


EDITS = [
    {"prompt": "Which country is Anna Berg from?", "target_new": "Norland", "subject": "Anna Berg"},
    {"prompt": "The mayor of Port Ellen is", "target_new": "Tom Ashford", "subject": "Port Ellen"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(edit) + "\n" for edit in EDITS))
    return path


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.output if code else result.stdout


@pytest.fixture
def adapter(base: Path, edits: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    run("edit", "--model", base, "--edits", edits, "--adapter", folder, "--json")
    return folder


def test_help_does_not_import_torch():
    code = "import sys, lemoe_cli\nlemoe_cli.app(['--help'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    for command in ("edit", "generate", "evaluate", "inspect", "undo", "push"):
        assert command in output


def test_the_version_is_told_as_soon():
    code = (
        "import sys, lemoe_cli\nlemoe_cli.app(['--version'], standalone_mode=False)\nassert 'torch' not in sys.modules"
    )
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == lemoe_hf.__version__


@pytest.mark.parametrize("command", ["edit", "generate", "evaluate", "inspect", "undo", "push"])
def test_every_command_has_help(command: str):
    assert "--adapter" in run(command, "--help")


def test_edit_answers_and_writes_the_adapter(base: Path, adapter: Path):
    assert {"adapter_model.safetensors", "adapter_config.json", "edits.jsonl", "README.md"} <= {
        path.name for path in adapter.iterdir()
    }
    assert "import lemoe_hf" in (adapter / "README.md").read_text()
    rows = json.loads(run("generate", "--adapter", adapter, "--json", *[edit["prompt"] for edit in EDITS]))
    assert [row["answer"] for row in rows] == [edit["target_new"] for edit in EDITS]
    assert all(row["base model"] != row["answer"] for row in rows)


def test_other_packages_say_nothing(base: Path, edits: Path, tmp_path: Path):
    """Neither when they are imported, nor when an adapter is made."""
    command = [
        "-m",
        "lemoe_hf.cli",
        "edit",
        "--model",
        base,
        "--edits",
        edits,
        "--adapter",
        tmp_path / "new",
        "--json",
    ]
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    own = ("not learned", "editor.edit(")  # this model learns nothing in its few steps, and that is told
    said = [line for line in done.stderr.splitlines() if not any(part in line for part in own)]
    assert (done.returncode, said) == (0, [])
    assert len(json.loads(done.stdout)) == len(EDITS)


def test_what_they_say_otherwise_is_told(caplog: pytest.LogCaptureFixture):
    be_quiet()
    be_quiet()
    logger = logging.getLogger("torchao")
    assert len(logger.filters) == 1
    logger.warning("Failed to load some.so: no such file")
    logger.warning("This kernel gives wrong results")
    assert caplog.messages == ["This kernel gives wrong results"]


def test_the_adapter_grows_and_a_repeated_run_changes_nothing(base: Path, adapter: Path, edits: Path):
    weights = (adapter / "adapter_model.safetensors").read_bytes()
    assert json.loads(run("edit", "--model", base, "--edits", edits, "--adapter", adapter, "--json")) == []
    assert (adapter / "adapter_model.safetensors").read_bytes() == weights
    more = [*EDITS, {"prompt": "Who wrote the Silver Lake?", "target_new": "Anna", "subject": "Silver Lake"}]
    edits.write_text("".join(json.dumps(edit) + "\n" for edit in more))
    rows = json.loads(run("edit", "--model", base, "--edits", edits, "--adapter", adapter, "--json"))
    assert [row["prompt"] for row in rows] == ["Who wrote the Silver Lake?"]
    listed = json.loads(run("inspect", "--adapter", adapter, "--json"))
    assert [row["prompt"] for row in listed] == [edit["prompt"] for edit in more]


def test_of_several_targets_of_one_prompt_the_last_one_counts_however_often_it_is_run(base: Path, tmp_path: Path):
    twice, folder = tmp_path / "twice.jsonl", tmp_path / "adapter"
    rows = [*EDITS, {**EDITS[0], "target_new": "Zembla"}]
    twice.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["edit", "--model", base, "--edits", twice, "--adapter", folder, "--step", 1, "--json"]
    assert len(json.loads(run(*command))) == 2
    assert json.loads(run(*command)) == []
    targets = [entry["target_new"] for entry in json.loads(run("inspect", "--adapter", folder, "--json"))]
    assert targets == ["Zembla", "Tom Ashford"]


@pytest.mark.parametrize("order", ["kmeans", "random"])
def test_a_planned_run_that_was_cut_off_goes_on_in_its_order(
    base: Path, tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: str
):
    names = ("Anna Berg", "Port Ellen", "Tom Ashford", "Silver Lake", "Norland")
    records = [Edit(f"{'Who knows' if i % 2 else 'Where is'} {name}?", "Aldona") for i, name in enumerate(names)]
    path = tmp_path / "edits.jsonl"
    path.write_text("".join(json.dumps(edit.to_dict()) + "\n" for edit in records))
    plan = plan_order(records, tiny("llama"), tokenizer, by=order, step=2)
    assert plan.permutation != [0, 1, 2, 3, 4]

    def edit(folder: str, code: int = 0) -> str:
        arguments = ("--model", base, "--edits", path, "--adapter", tmp_path / folder, "--step", 2)
        return run("edit", *arguments, "--order", order, "--json", code=code)

    rows = json.loads(edit("whole"))
    assert [row["prompt"] for row in rows] == [edit.prompt for batch in plan.batches for edit in batch]

    make, made = LifelongEditor.edit, []

    def make_once(editor: LifelongEditor, batch: list[Edit]):
        if made:
            raise OSError("cut off")
        made.append(batch)
        return make(editor, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LifelongEditor, "edit", make_once)
        assert "cut off" in edit("parts", code=1)
    assert made == plan.batches[:1]
    rows = json.loads(edit("parts"))
    assert [row["prompt"] for row in rows] == [edit.prompt for batch in plan.batches[1:] for edit in batch]
    weights = [(tmp_path / folder / "adapter_model.safetensors").read_bytes() for folder in ("whole", "parts")]
    assert weights[0] == weights[1]


def test_every_order_of_the_package_can_be_asked_for_and_no_other(base: Path, edits: Path, tmp_path: Path):
    assert get_type_hints(main.edit)["order"] == OrderBy
    output = run("edit", "--model", base, "--edits", edits, "--adapter", tmp_path / "new", "--order", "size", code=2)
    assert "'size' is not one of" in output


def test_another_method_may_be_asked_for_and_says_what_it_needs(base: Path, edits: Path, tmp_path: Path):
    options = ("--model", base, "--edits", edits, "--adapter", tmp_path / "elder", "--method")
    assert "has 4 layers" in run("edit", *options, "elder", code=1)
    assert "Invalid value" in run("edit", *options, "another", code=2)


def test_inspect_explains_a_prompt(adapter: Path):
    prompts = [EDITS[0]["prompt"], "Is it late?"]
    explained = json.loads(
        run("inspect", "--adapter", adapter, "--prompt", prompts[0], "--prompt", prompts[1], "--json")
    )
    assert explained[0]["entry"]["id"] == 0
    assert explained[1]["entry"] is None
    assert "the base model answers" in run("inspect", "--adapter", adapter, "--prompt", "Is it late?")


def test_undo_takes_an_edit_back(adapter: Path):
    run("undo", 0, "--adapter", adapter)
    assert [row["id"] for row in json.loads(run("inspect", "--adapter", adapter, "--json"))] == [1]
    assert "There is no edit 0" in run("undo", 0, "--adapter", adapter, code=1)


def test_evaluate_measures_the_adapters_own_edits(adapter: Path):
    measures = json.loads(run("evaluate", "--adapter", adapter, "--json"))
    assert measures["num_edits"] == 2
    assert measures["reliability"] == measures["free_reliability"] == 1.0


def test_evaluate_takes_the_measures_that_were_asked_for(adapter: Path):
    measures = json.loads(run("evaluate", "--adapter", adapter, "--measures", "routing,contexts", "--json"))
    names = {"routed_prompt", "deferred_prompt", "free_reliability_prefix", "free_reliability_document"}
    assert measures.keys() == {"num_edits", *names}
    assert measures["routed_prompt"] == 1.0
    output = run("evaluate", "--adapter", adapter, "--measures", "routing,fluency", code=1)
    assert "There are no measures ['fluency']; choose from reliability," in output


def test_evaluate_goes_on_where_it_was_interrupted(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command = ("evaluate", "--adapter", adapter, "--work", tmp_path / "work", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "answers", interrupt)
        assert CliRunner().invoke(app, [str(part) for part in command]).exit_code != 0
    expected = run("evaluate", "--adapter", adapter, "--json")
    assert run(*command) == expected
    monkeypatch.setattr(accuracy, "answers", interrupt)
    assert run(*command) == expected


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_evaluate_reads_the_formats_of_the_benchmarks(adapter: Path, tmp_path: Path):
    path = tmp_path / "zsre.json"
    record = {
        "src": EDITS[0]["prompt"],
        "alt": EDITS[0]["target_new"],
        "subject": "Anna Berg",
        "rephrase": "Anna Berg is",
    }
    path.write_text(json.dumps([record | {"loc": "nq question: is it late", "loc_ans": "no"}]))
    measures = json.loads(run("evaluate", "--adapter", adapter, "--edits", path, "--json"))
    assert (measures["num_edits"], measures["reliability"]) == (1, 1.0)
    assert {"generality", "locality_exact"} <= measures.keys()


def test_evaluate_writes_the_figures_to_the_card(adapter: Path):
    measures = json.loads(run("evaluate", "--adapter", adapter, "--card", "--json"))
    card = ModelCard.load(adapter / "README.md")
    assert "Measured on 2 edits when the adapter held 2, after all edits" in card.text
    assert f"| `reliability` | {measures['reliability']:.4f} |" in card.text
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        name: value for name, value in measures.items() if name != "num_edits"
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no edits"),
        ("{", "line 1: not JSON"),
        ('{"prompt": "a"}\n', "line 1: the key `target_new` is missing"),
        ('{"prompt": "a", "target_new": "b"}\n{"prompt": "", "target_new": "b"}\n', "line 2: `prompt`"),
    ],
)
def test_bad_edits_are_told_by_file_and_line(base: Path, tmp_path: Path, text: str, message: str):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    output = run("edit", "--model", base, "--edits", path, "--adapter", tmp_path / "new", code=1)
    assert message in output
    assert "bad.jsonl" in output
    assert not (tmp_path / "new").exists()


def test_a_damaged_adapter_is_told(base: Path, adapter: Path, edits: Path):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "is damaged" in run("inspect", "--adapter", adapter, code=1)
    assert "is damaged" in run("edit", "--model", base, "--edits", edits, "--adapter", adapter, code=1)
    (adapter / "adapter_config.json").write_text("{")
    assert "adapter_config.json" in run("inspect", "--adapter", adapter, code=1)


def test_a_folder_that_holds_something_else_is_left_alone(base: Path, edits: Path, tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"cat")
    assert "holds no adapter" in run("edit", "--model", base, "--edits", edits, "--adapter", folder, code=1)
    assert [path.name for path in folder.iterdir()] == ["cat.jpg"]


def test_an_adapter_of_memoe_is_made_and_goes_through_every_command(base, edits, tmp_path):
    adapter = tmp_path / "adapter"
    run("edit", "--model", base, "--edits", edits, "--adapter", adapter, "--method", "memoe", "--json")
    assert json.loads((adapter / "adapter_config.json").read_text())["peft_type"] == "MEMOE"
    assert [row["prompt"] for row in json.loads(run("inspect", "--adapter", adapter, "--json"))] == [
        edit["prompt"] for edit in EDITS
    ]
    said = json.loads(run("generate", EDITS[0]["prompt"], "--adapter", adapter, "--json"))
    assert said[0]["answer"].startswith("Norland")
    assert json.loads(run("evaluate", "--adapter", adapter, "--measures", "reliability", "--json"))["reliability"] == 1
    (why,) = json.loads(run("inspect", "--adapter", adapter, "--prompt", EDITS[0]["prompt"], "--json"))
    assert why["entry"]["id"] == 0
    run("undo", 0, "--adapter", adapter)
    assert len(json.loads(run("inspect", "--adapter", adapter, "--json"))) == 1
    output = run("edit", "--model", base, "--edits", edits, "--adapter", adapter, "--method", "lemoe", code=1)
    assert "of type MEMOE, and cannot go on as LEMOE" in " ".join(output.split())
    run("edit", "--model", base, "--edits", edits, "--adapter", adapter)
    assert len(json.loads(run("inspect", "--adapter", adapter, "--json"))) == 2


# ------------------------------------------------------------------------------------------------ crashes, other writers


@pytest.mark.parametrize("left", [[".lemoe-draft-x"], [".lemoe-draft-x", "adapter_config.json"]])
def test_a_crash_in_the_first_save_is_resumed_by_the_same_command(base: Path, adapter: Path, edits: Path, left: list):
    whole = (adapter / "adapter_model.safetensors").read_bytes()
    for path in list(adapter.iterdir()):
        if path.name not in left:
            path.unlink()
    (adapter / ".lemoe-draft-x").mkdir()
    run("edit", "--model", base, "--edits", edits, "--adapter", adapter, "--json")
    assert (adapter / "adapter_model.safetensors").read_bytes() == whole
    assert not (adapter / ".lemoe-draft-x").exists()


def test_half_an_adapter_is_called_so(base: Path, adapter: Path, edits: Path):
    (adapter / "adapter_config.json").rename(adapter / "config")
    output = run("edit", "--model", base, "--edits", edits, "--adapter", adapter, code=1)
    assert "is incomplete: there is adapter_model.safetensors, and no adapter_config.json" in output
    (adapter / "config").rename(adapter / "adapter_config.json")
    (adapter / "adapter_model.safetensors").unlink()
    for command in ("inspect", "generate"):
        output = run(command, *(["Is it late?"] if command == "generate" else []), "--adapter", adapter, code=1)
        assert "is incomplete: there is no adapter_model.safetensors. Run `lemoe edit` again" in output


def test_the_list_for_people_is_mended_by_the_same_command(base: Path, adapter: Path, edits: Path):
    listed = (adapter / "edits.jsonl").read_text()
    (adapter / "edits.jsonl").write_text(listed.splitlines()[0] + "\n")
    run("edit", "--model", base, "--edits", edits, "--adapter", adapter, "--json")
    assert (adapter / "edits.jsonl").read_text() == listed


def test_a_second_command_is_told_that_the_first_is_not_done(base: Path, adapter: Path, edits: Path):
    code = (
        "import sys, pathlib\nfrom lemoe_hf.editing.save import writing\n"
        "with writing(pathlib.Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(adapter)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        for arguments in (["edit", "--model", base, "--edits", edits], ["undo", 0]):
            assert "Another process is writing to" in run(*arguments, "--adapter", adapter, code=1)
        assert len(json.loads(run("inspect", "--adapter", adapter, "--json"))) == 2
        process.stdin.close()


# ---------------------------------------------------------------------------------------------------- texts of strangers

NASTY = "[/INST] x[i] [link=http://x]y[/link] \x1b]0;owned\x07 \x9b2J \u202egnp.exe"


def test_texts_do_nothing_in_a_terminal(base: Path, tmp_path: Path):
    path, folder = tmp_path / "nasty.jsonl", tmp_path / "adapter"
    path.write_text(json.dumps({"prompt": f"Who is {NASTY}?", "target_new": "[/b]Anna"}))
    edited = run("edit", "--model", base, "--edits", path, "--adapter", folder)
    for output in (edited, run("inspect", "--adapter", folder), run("undo", 0, "--adapter", folder)):
        assert not set(output) & set("\x1b\x07\x9b\u202e")
        joined = "".join(output.split())
        assert "\\u001b" in joined
        assert "\\u202e" in joined
        assert "[/b]" in joined


def test_json_holds_no_character_that_acts(base: Path, tmp_path: Path):
    path, folder = tmp_path / "nasty.jsonl", tmp_path / "adapter"
    path.write_text(json.dumps({"prompt": f"Who is {NASTY}?", "target_new": "Zürich"}))
    run("edit", "--model", base, "--edits", path, "--adapter", folder, "--json")
    output = run("inspect", "--adapter", folder, "--json")
    assert not set(output) & set("\x1b\x07\x9b\u202e")
    assert json.loads(output)[0]["prompt"] == f"Who is {NASTY}?"
    assert "Zürich" in output


def test_inspect_tells_damage_without_the_model(adapter: Path):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if name.endswith("anchors.threshold"):
            tensors[name] -= 2
    save_file(tensors, file, {"format": "pt"})
    assert "lemoe_anchors.threshold holds numbers from -1" in run("inspect", "--adapter", adapter, code=1)
    config = adapter / "adapter_config.json"
    config.write_text("[" * 100_000)
    assert "adapter_config.json' is damaged" in run("inspect", "--adapter", adapter, code=1).replace(
        ".json is", ".json' is"
    )
