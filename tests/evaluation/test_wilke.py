"""WilKE's protocol, on editors whose faults are known."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lemoe_hf import Edit, EditingError, RankOneEditor
from lemoe_hf.evaluation import known_facts, roll_back, wilke
from lemoe_hf.evaluation.wilke import harmonic_mean
from rank_one.wrote import EDITS, arguments, steep
from tiny import SENTENCES


class Made:
    def __init__(self, layer: int):
        self.layer = layer


class Notebook:
    """An editor that answers what it was told last, and nothing else; every third edit wipes out one fact."""

    tokenizer = None

    def __init__(self, known: dict[str, str]):
        self.model, self.calls = dict(known), []

    def edit(self, edit: Edit, layer: int | None = None):
        self.calls.append((edit.prompt, edit.target_new, layer))
        self.model[edit.prompt] = edit.target_new
        if len(self.calls) == 3:
            self.model["u1"] = "lost"
        return [Made(len(self.calls))]


FACTS = [
    Edit("a", "new", ground_truth="old", rephrase_prompt="a again", locality_prompt="l", locality_ground_truth="near"),
    Edit("b", "new", ground_truth="old", locality_prompt=["l", "m"], locality_ground_truth=["near", "far"]),
]
OTHERS = [Edit("u1", "-", ground_truth="x"), Edit("u2", "-", ground_truth="y")]


@pytest.fixture
def notebook(monkeypatch) -> Notebook:
    def looked_up(model, tokenizer, prompts, answers, batch_size):
        return [float(model.get(prompt) == answer) for prompt, answer in zip(prompts, answers, strict=True)]

    monkeypatch.setattr(wilke, "teacher_forced", looked_up)
    return Notebook({"a": "old", "b": "old", "l": "near", "u1": "x", "u2": "y"})


def test_scores_are_counted_as_published(notebook):
    rows = roll_back(notebook, FACTS, OTHERS, at=(1,))
    assert rows[0] == {"n": 1, "es": 1, "gs": 0, "ls": 1, "ers": 1, "ors": 1, "s": rows[0]["s"]}
    assert rows[0]["s"] == pytest.approx(5 / (4 + 1 / 1e-4))
    assert rows[1] == {"n": 2, "es": 1, "gs": 0, "ls": 0.75, "ers": 1, "ors": 0.5, "s": rows[1]["s"]}
    # Each roll-back goes to the layer of its edit, and there is no edit more.
    assert notebook.calls == [("a", "new", None), ("a", "old", 1), ("b", "new", None), ("b", "old", 3)]


def test_a_refused_edit_counts_as_it_is_left(notebook, monkeypatch):
    own = notebook.edit

    def edit(edit: Edit, layer: int | None = None):
        if (edit.prompt, edit.target_new) in (("a", "new"), ("b", "old")):
            raise EditingError("refused", [])
        return own(edit, layer)

    monkeypatch.setattr(notebook, "edit", edit)
    first, last = roll_back(notebook, FACTS, OTHERS, at=(1,))
    assert (first["es"], first["ers"]) == (0, 1)
    assert (last["es"], last["ers"]) == (0.5, 0.5)
    assert notebook.calls == [("b", "new", None)]


def test_facts_that_are_known_are_told(notebook):
    unknown = Edit("l", "-", ground_truth="wrong")
    assert known_facts(notebook.model, None, [*FACTS, unknown, Edit("c", "-")]) == FACTS


def test_a_mean_of_nothing_and_of_zeros():
    assert harmonic_mean([1.0, 1.0, 0.0]) == pytest.approx(3 / (2 + 1e4))


def test_facts_without_a_way_back_are_refused(notebook):
    with pytest.raises(ValueError, match="'c' has no `ground_truth` to go back to"):
        roll_back(notebook, [Edit("c", "new")], OTHERS)
    with pytest.raises(ValueError, match="got 2 and 0"):
        roll_back(notebook, FACTS, [])


def test_a_rank_one_editor_goes_through_it(tokenizer):
    facts = [replace(edit, ground_truth="of") for edit in EDITS[:2]]
    editor = RankOneEditor(steep(), tokenizer, arguments(layer=1), SENTENCES)
    seen: list[dict] = []
    rows = roll_back(editor, facts, [replace(EDITS[3], ground_truth="is")], at=(1, 2), done=seen.append)
    assert rows == seen
    assert [row["n"] for row in rows] == [1, 2]
    assert rows[0]["es"] == rows[0]["ers"] == 1
    assert [made["layer"] for made in editor.edits()] == [1] * 4
    assert [made["target_new"] for made in editor.edits()] == ["is", "of", "Tom", "of"]
