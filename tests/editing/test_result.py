import pytest

from facts import FACTS, editor_for, targets
from lemoe_hf import Edit


@pytest.fixture
def editor(tokenizer):
    return editor_for(tokenizer)


def answers(editor, edits) -> list[str]:
    bounds = [len(editor.tokenizer(edit.target_new)["input_ids"]) + 4 for edit in edits]
    return [text.strip() for text in editor.answers([edit.prompt for edit in edits], bounds)]


def test_before_and_after_are_the_answers_then(editor):
    base = answers(editor, FACTS[:2])
    result = editor.edit(FACTS[:2])
    assert result.before == base
    assert result.after == targets(FACTS[:2])
    assert base != result.after


def test_before_and_after_are_right_however_late_they_are_asked_for(editor):
    base = answers(editor, FACTS[:1])
    first = editor.edit(FACTS[0])
    second = editor.edit(Edit(FACTS[0].prompt, "Oman", subject=FACTS[0].subject))
    third = editor.edit(Edit(FACTS[0].prompt, "Peru", subject=FACTS[0].subject))
    assert (first.before, first.after) == (base, ["Yemen"])
    assert (second.before, second.after) == (["Yemen"], ["Oman"])
    assert (third.before, third.after) == (["Oman"], ["Peru"])


def test_answers_are_generated_when_they_are_asked_for(editor, monkeypatch):
    calls = []
    monkeypatch.setattr(editor, "answers", lambda prompts, bounds: calls.append(prompts) or ["x"] * len(prompts))
    result = editor.edit(FACTS[:2])
    assert calls == []
    assert "x" in str(result)
    str(result)
    assert len(calls) == 2  # before and after, once


def test_a_result_prints_as_a_table(editor):
    result = editor.edit(FACTS[:2])
    text = str(result)
    assert "2 edits in" in text
    header = next(line for line in text.splitlines() if "prompt" in line)
    assert [
        name for name in ("id", "prompt", "target", "before", "after", "loss", "steps") if name not in header
    ] == []
    (row,) = (line for line in text.splitlines() if FACTS[1].prompt in line)
    assert row.count("Onhava") >= 2  # as the target and as the answer


def test_a_result_renders_in_a_notebook(editor):
    html = editor.edit([Edit("Is <b>Bonn</b> big?", "a & b")])._repr_html_()
    assert html.startswith("<table><caption>1 edits in")
    assert "<td>Is &lt;b&gt;Bonn&lt;/b&gt; big?</td><td>a &amp; b</td>" in html
    assert html.count("<th>") == html.count("<td>") == 7


def test_rows_and_length(editor):
    result = editor.edit(FACTS[:3])
    assert len(result) == 3
    assert [row["target"] for row in result.rows()] == targets(FACTS[:3])
    assert [row["steps"] for row in result.rows()] == [record["steps"] for record in result.records]
    assert "LifelongEditor" not in repr(result)


def test_where_every_prompt_is_routed_before_is_the_base_model(tokenizer):
    editor = editor_for(tokenizer, deferral=False, routing="kv_anchor")
    with editor.model.disable_adapter():
        base = answers(editor, FACTS[:1])
    first = editor.edit(FACTS[0])
    editor.edit(FACTS[1])
    assert first.before == base != first.after == answers(editor, FACTS[:1])
    with pytest.raises(ValueError, match="deferral=False"), editor.without({0}):
        pass
