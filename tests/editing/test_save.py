import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, LlamaConfig

from facts import FACTS, editor_for, learner, targets
from lemoe_hf import Edit, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.editing import save
from tiny import adapter_state, assert_same, tiny


@pytest.fixture
def editor(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    return editor


@pytest.fixture
def folder(editor, tmp_path):
    """A saved adapter with two edits, of a model that has three by now."""
    folder = tmp_path / "adapter"
    editor.save_pretrained(folder)
    editor.edit(FACTS[2])
    return folder


def load(folder, tokenizer) -> LifelongEditor:
    return LifelongEditor(PeftModel.from_pretrained(learner().unload(), folder), tokenizer)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_saved_is_what_you_had(editor, tmp_path, tokenizer):
    editor.save_pretrained(tmp_path / "new" / "folder")
    loaded = load(tmp_path / "new" / "folder", tokenizer)
    assert_same(adapter_state(loaded.model), adapter_state(editor.model))
    assert loaded.edits() == editor.edits()
    assert loaded.config.output_scale == editor.config.output_scale
    assert [text.strip() for text in loaded.answers([fact.prompt for fact in FACTS[:2]], 8)] == targets(FACTS[:2])


def test_the_ledger_lies_beside_it_for_people_and_can_be_read_again(editor, tmp_path):
    fact = Edit("Where\u2028is Zürich?", "Über all", rephrase_prompt="Zürich is")
    editor.edit(fact)
    editor.save_pretrained(tmp_path)
    assert read_edits(tmp_path / "edits.jsonl") == [*FACTS[:2], fact]
    lines = (tmp_path / "edits.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    assert [json.loads(line)["id"] for line in lines] == [0, 1, 2]
    assert "Zürich" in lines[-1]


def test_nothing_but_the_adapter_is_left_behind(folder):
    expected = {save.LOCK, "README.md", "adapter_config.json", "adapter_model.safetensors", "edits.jsonl"}
    assert set(contents(folder)) == expected
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_what_a_crash_has_left_is_cleared(editor, folder):
    left = folder / f"{save.DRAFT}x"
    left.mkdir()
    (left / "adapter_model.safetensors").write_bytes(b"half")
    editor.save_pretrained(folder)
    assert not left.exists()


def test_saving_again_replaces_and_keeps_what_a_user_wrote(editor, folder, tokenizer):
    readme = folder / "README.md"
    readme.write_text(readme.read_text() + "\n## My notes\n")
    (folder / "notes.txt").write_text("mine")
    editor.save_pretrained(folder)
    assert len(load(folder, tokenizer).edits()) == 3
    assert "## My notes" in readme.read_text()
    assert (folder / "notes.txt").read_text() == "mine"


def test_another_adapter_is_saved_by_its_name(tokenizer, tmp_path):
    model = learner()
    model.add_adapter("french", LEMoEConfig())
    model.set_adapter("french")
    editor = LifelongEditor(model, tokenizer)
    editor.edit(FACTS[0])
    editor.save_pretrained(tmp_path)
    loaded = load(tmp_path, tokenizer)
    assert loaded.adapter_name == "default"
    assert loaded.edits() == editor.edits()
    assert "import lemoe_hf" in (tmp_path / "README.md").read_text()


# ------------------------------------------------------------------------------------------------------ other writers


def test_an_adapter_that_somebody_else_has_written_since_is_not_replaced(editor, folder, tokenizer):
    other = load(folder, tokenizer)
    other.model.base_model.remove_edit(0)
    other.save_pretrained(folder)
    before = contents(folder)
    with pytest.raises(ValueError, match="somebody else has written there since.*`overwrite=True`"):
        editor.save_pretrained(folder)
    assert contents(folder) == before
    other.model.base_model.remove_edit(1)
    other.save_pretrained(folder)
    editor.save_pretrained(folder, overwrite=True)
    assert len(load(folder, tokenizer).edits()) == 3


def test_an_adapter_that_was_loaded_or_saved_is_replaced_however_often(editor, folder, tokenizer, tmp_path):
    for _ in range(2):
        editor.save_pretrained(folder)
    loaded = load(folder, tokenizer)
    loaded.model.base_model.remove_edit(2)
    loaded.model.save_pretrained(folder)  # PEFT's own
    loaded.save_pretrained(folder)
    assert len(load(folder, tokenizer).edits()) == 2


def test_a_folder_that_another_process_writes_to_is_left_alone(editor, folder, monkeypatch):
    before = contents(folder)
    code = (
        "import sys, pathlib\nfrom lemoe_hf.editing.save import writing\n"
        "with writing(pathlib.Path(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(folder.resolve())]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        monkeypatch.setattr(save.writing.__wrapped__, "__defaults__", (0.1,))
        with pytest.raises(OSError, match="Another process is writing to"):
            editor.save_pretrained(folder)
        process.stdin.close()
    assert contents(folder) == before
    editor.save_pretrained(folder)


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_a_user_calls_a_draft_is_the_users(editor, folder, tmp_path, kind):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in (".draft-v2", f"{save.DRAFT}notes"):
        path = folder / name
        if kind == "link":
            path.symlink_to(elsewhere)
        elif kind == "file" or name.startswith(save.DRAFT):
            path.write_text("mine")
        else:
            path.mkdir()
    before = set(folder.iterdir())
    editor.save_pretrained(folder)
    assert set(folder.iterdir()) == before
    assert elsewhere.exists()


def test_the_weights_are_for_whom_the_umask_says(editor, tmp_path):
    before = os.umask(0o022)
    try:
        editor.save_pretrained(tmp_path / "open")
        os.umask(0o077)
        editor.save_pretrained(tmp_path / "closed")
    finally:
        os.umask(before)
    modes = [(tmp_path / name / save.WEIGHTS).stat().st_mode & 0o777 for name in ("open", "closed")]
    assert modes == [0o644, 0o600]


UNREADABLE = {
    "no text": b"\xff\xfe\x00",
    "no YAML": b"---\na: [\n---\n# Ours\n",
    "a list for a head": b"---\n- a\n---\n# Ours\n",
    "code": b"---\na: !!python/object/apply:os.getcwd []\n---\n# Ours\n",
    "broken figures": b"---\nmodel-index: 5\n---\n# Ours\n",
}


@pytest.mark.parametrize("card", UNREADABLE)
def test_a_card_that_cannot_be_read_keeps_nobody_from_saving(editor, folder, tokenizer, card):
    (folder / "README.md").write_bytes(UNREADABLE[card])
    with pytest.warns(UserWarning, match="README.md cannot be read as a model card.*left as it is"):
        editor.save_pretrained(folder)
    assert (folder / "README.md").read_bytes() == UNREADABLE[card]
    assert len(load(folder, tokenizer).edits()) == 3


def test_tags_that_are_numbers_are_taken_for_texts(editor, folder):
    (folder / "README.md").write_text("---\ntags: [1, 2]\n---\n# Ours\n")
    editor.save_pretrained(folder)
    assert "# Ours" in (folder / "README.md").read_text()


# -------------------------------------------------------------------------------------------------------- failed saves


def test_a_full_disk_is_an_error_of_the_system(editor, folder, monkeypatch):
    def full(*args, **kwargs):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("peft.peft_model.safe_save_file", full)
    with pytest.raises(OSError, match="adapter_model.safetensors cannot be written.*No space left"):
        editor.save_pretrained(folder)


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("broken", ["weights", "config", "ledger", "draft"])
def test_a_full_disk_leaves_the_old_adapter_as_it_was(editor, folder, monkeypatch, tokenizer, broken):
    before = contents(folder)
    if broken == "weights":
        monkeypatch.setattr("peft.peft_model.safe_save_file", full_disk)
    elif broken == "config":
        monkeypatch.setattr(LEMoEConfig, "save_pretrained", full_disk)
    elif broken == "ledger":
        monkeypatch.setattr(Path, "write_text", full_disk)
    else:
        monkeypatch.setattr(save.tempfile, "TemporaryDirectory", full_disk)
    with pytest.raises(OSError, match="No space left on device"):
        editor.save_pretrained(folder)
    monkeypatch.undo()
    assert contents(folder) == before
    assert os.listdir(folder.parent) == ["adapter"]
    assert len(load(folder, tokenizer).edits()) == 2
    editor.save_pretrained(folder)
    assert len(load(folder, tokenizer).edits()) == 3


def test_a_folder_that_cannot_be_written(editor, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        editor.save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "not a folder"
    assert len(editor.edits()) == 2


def test_a_folder_whose_parent_cannot_be_written_is_enough(editor, folder, monkeypatch, tokenizer):
    """As with a folder that an administrator has made, or a mounted volume."""
    mkdir = os.mkdir

    def guarded(path, *args, **kwargs):
        if Path(path).parent == folder.parent:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", guarded)
    editor.save_pretrained(folder)
    assert len(load(folder, tokenizer).edits()) == 3


@pytest.mark.parametrize("survived", [0, 1, 2, 3])
def test_a_crash_between_two_files_leaves_an_adapter_that_loads(editor, folder, monkeypatch, tokenizer, survived):
    replaced = []

    def replace(source, target):
        if len(replaced) == survived:
            raise KeyboardInterrupt
        replaced.append(target)
        os.rename(source, target)

    monkeypatch.setattr(save.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        editor.save_pretrained(folder)
    monkeypatch.undo()
    loaded = load(folder, tokenizer)
    num = len(loaded.edits())
    assert num == (3 if folder.resolve() / "adapter_model.safetensors" in replaced else 2)
    assert [text.strip() for text in loaded.answers([fact.prompt for fact in FACTS[:num]], 8)] == targets(FACTS[:num])


def test_a_crash_in_the_first_save_with_edits_keeps_their_scale(tokenizer, tmp_path, monkeypatch):
    """The unit of the experts' output is in the config, their weights are not."""
    editor = editor_for(tokenizer)
    editor.save_pretrained(tmp_path)
    editor.edit(FACTS[0])
    scale, replaced = editor.config.output_scale, []

    def replace(source, target):
        if len(replaced) == 1:
            raise KeyboardInterrupt
        replaced.append(target)
        os.rename(source, target)

    monkeypatch.setattr(save.os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        editor.save_pretrained(tmp_path)
    monkeypatch.undo()
    loaded = load(tmp_path, tokenizer)
    assert loaded.edits() == [] or loaded.config.output_scale == scale


# ------------------------------------------------------------------------------------------------------- damaged files


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_truncated_weights(folder, tokenizer, share):
    path = folder / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Exception, match=r"(?i)header|incomplete|invalid|buffer"):
        load(folder, tokenizer)


def test_weights_that_lack_a_tensor(folder, tokenizer):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "lemoe_bank.out_proj" in name)
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=r"weights lack lemoe_bank.out_proj: the file is damaged, or belongs to another"
    ):
        load(folder, tokenizer)


def test_weights_of_another_method(folder, tokenizer):
    save_file({"base_model.model.lm_head.lora_A.weight": torch.zeros(2, 2)}, folder / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"file is damaged, or belongs to another method"):
        load(folder, tokenizer)


@pytest.mark.parametrize("cut", [0, 10, 200])
def test_a_damaged_config(folder, tokenizer, cut):
    path = folder / "adapter_config.json"
    path.write_text(path.read_text()[:cut])
    with pytest.raises(ValueError, match=r"line \d+ column \d+"):
        load(folder, tokenizer)


def test_a_config_with_a_value_that_is_not_allowed(folder, tokenizer):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"routing": "psychic"}))
    with pytest.raises(ValueError, match="`routing` must be one of nearest_anchor, kv_anchor; got 'psychic'"):
        load(folder, tokenizer)


def test_damage_does_not_reach_a_model_that_is_loaded_already(folder, tokenizer):
    loaded = load(folder, tokenizer)
    state = adapter_state(loaded.model)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    assert_same(adapter_state(loaded.model), state)
    loaded.edit(FACTS[3])
    assert len(loaded.edits()) == 3


# ----------------------------------------------------------------------------------------------------- the wrong model


def test_an_adapter_for_another_hidden_size(folder):
    config = tiny().config.to_dict() | {"hidden_size": 48, "head_dim": 12}
    other = AutoModelForCausalLM.from_config(LlamaConfig(**config))
    with (
        pytest.warns(UserWarning, match=r"made for .* \(fingerprint"),
        pytest.raises(
            ValueError, match=r"shape .*32.* needs .*48.*another hidden size.*Load the base model it was made for"
        ),
    ):
        PeftModel.from_pretrained(other, folder)


def test_an_adapter_on_another_base_model_warns(folder):
    other = AutoModelForCausalLM.from_config(LlamaConfig(**tiny().config.to_dict() | {"num_hidden_layers": 5}))
    with pytest.warns(
        UserWarning, match=r"Its edits will not answer as they did; load the base model it was made for"
    ):
        PeftModel.from_pretrained(other, folder)


def test_a_model_that_is_no_causal_language_model():
    bert = BertForMaskedLM(
        BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    )
    with pytest.raises(ValueError, match="BertForMaskedLM is a masked language model; LEMoE edits causal"):
        get_peft_model(bert, LEMoEConfig())
