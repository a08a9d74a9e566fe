"""Any measure of any rows: means, and going on where it was interrupted."""

from __future__ import annotations

import json

import pytest

from facts import FACTS, editor_for
from lemoe_hf.evaluation import Evaluator, versions


class Lengths:
    """Of texts; it notes what it was asked, and breaks at a text if told so."""

    name = "lengths"

    def __init__(self, breaks_at: str | None = None):
        self.breaks_at, self.asked = breaks_at, []

    def scores(self, model, tokenizer, rows) -> list[dict[str, float]]:
        assert not model.training
        if self.breaks_at in rows:
            raise KeyboardInterrupt
        self.asked.append("".join(rows))
        return [{"length": float(len(row))} | ({"upper": 1.0} if row.isupper() else {}) for row in rows]


class Firsts:
    name = "firsts"

    def scores(self, model, tokenizer, rows) -> list[dict[str, float]]:
        return [{"first": float(ord(row[0]))} for row in rows]


ROWS = ["a", "bb", "CC", "ddd", "e", "f", "g", "hh", "i", "j"]


@pytest.fixture(scope="module")
def editor(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    return editor


@pytest.fixture
def model(editor):
    return editor.model


def test_figures_are_means_over_the_rows_that_have_them(model, tokenizer):
    assert Evaluator(["a", "bbb", "CC"], [Lengths(), Firsts()])(model, tokenizer) == {
        "num_rows": 3,
        "length": 2.0,
        "upper": 1.0,
        "first": (97 + 98 + 67) / 3,
    }


def test_a_model_in_training_is_measured_as_it_answers(model, tokenizer):
    model.train()
    assert Evaluator(["a"], [Lengths()])(model, tokenizer)["length"] == 1.0
    assert model.training
    model.eval()


def test_scores_are_those_of_all_measures_row_by_row(model, tokenizer):
    scores = Evaluator([], [Lengths(), Firsts()]).scores(model, tokenizer, ["a", "CC"])
    assert scores == [{"length": 1.0, "first": 97.0}, {"length": 2.0, "upper": 1.0, "first": 67.0}]


def test_an_evaluator_is_a_measure_as_well(model, tokenizer):
    inner = Evaluator([], [Lengths()])
    inner.name = "inner"
    assert Evaluator(["a", "bbb"], [inner, Firsts()])(model, tokenizer)["length"] == 2.0


def test_the_same_call_goes_on_where_it_was_interrupted(model, tokenizer, tmp_path):
    """With the rows together that would have been together: the last bits of a figure hang on that."""
    whole = Lengths()
    expected = Evaluator(ROWS, [whole], 1, work=tmp_path / "whole")(model, tokenizer)
    assert whole.asked == ["abbCCddd", "efghh", "ij"]
    with pytest.raises(KeyboardInterrupt):
        Evaluator(ROWS, [Lengths("i")], 1, work=tmp_path / "parts")(model, tokenizer)
    path = tmp_path / "parts" / "scores-0.jsonl"
    assert len(path.read_text().splitlines()) == 8
    path.write_bytes(path.read_bytes()[:-7])  # and it was killed while it wrote
    rest = Lengths()
    assert Evaluator(ROWS, [rest], 1, work=tmp_path / "parts")(model, tokenizer) == expected
    assert rest.asked == ["efghh", "ij"]
    for _ in range(2):
        assert Evaluator(ROWS, [Lengths("a")], 1, work=tmp_path / "parts")(model, tokenizer) == expected


def test_other_rows_and_other_measures_share_the_folder(model, tokenizer, tmp_path):
    Evaluator(ROWS[:4], [Lengths()], 1, work=tmp_path)(model, tokenizer)
    more = Lengths()
    both = Evaluator(["ddd", "e"], [more, Firsts()], 1, work=tmp_path)(model, tokenizer)
    assert both == {"num_rows": 2, "length": 2.0, "first": 100.5}
    assert more.asked == ["ddde"]
    alone = Lengths()
    Evaluator(["e", "a", "ddd"], [alone], 1, work=tmp_path)(model, tokenizer)
    assert alone.asked == []


def test_what_a_line_is_about_can_be_read(model, tokenizer, tmp_path):
    class Nothing:
        name = "nothing"

        def scores(self, model, tokenizer, rows):
            return [{} for _ in rows]

    Evaluator([FACTS[0], "Is it late?"], [Nothing()], work=tmp_path)(model, tokenizer)
    lines = (tmp_path / "scores-0.jsonl").read_text().splitlines()
    about = [json.loads(line)["about"] for line in lines]
    assert about == [f"nothing: {FACTS[0].prompt}", "nothing: Is it late?"]


def test_a_model_that_has_changed_is_measured_anew(tokenizer, tmp_path):
    editor = editor_for(tokenizer)
    asked = []
    for change in (lambda: None, lambda: editor.edit(FACTS[0]), lambda: None, lambda: editor.undo(0)):
        change()
        measure = Lengths()
        Evaluator(["a"], [measure], work=tmp_path)(editor.model, tokenizer)
        asked.append(len(measure.asked))
    measure = Lengths()
    with editor.model.disable_adapter():
        Evaluator(["a"], [measure], work=tmp_path)(editor.model, tokenizer)
    assert [*asked, len(measure.asked)] == [1, 1, 0, 1, 1]


def test_without_a_folder_nothing_is_kept(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measure = Lengths()
    evaluate = Evaluator(ROWS, [measure], 1)
    assert evaluate(model, tokenizer) == evaluate(model, tokenizer)
    assert measure.asked == ["".join(ROWS)] * 2
    assert list(tmp_path.iterdir()) == []


def test_a_report_tells_what_is_needed_to_repeat_it(model, tokenizer):
    report = Evaluator(["a", "bbb"], [Lengths()]).report(model, tokenizer, edits_per_step=10, seed=0)
    assert report.pop("protocol").startswith("after all edits")
    assert report == {
        "base_model": model.get_base_model().name_or_path,
        "num_rows": 2,
        "edits_per_step": 10,
        "seed": 0,
        "measures": {"length": 2.0},
        "versions": versions(),
    }
    assert json.loads(json.dumps(report)) == report
