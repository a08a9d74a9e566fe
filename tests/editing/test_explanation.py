"""What several prompts ask for at once, as `explain` has it one by one."""

from __future__ import annotations

import pytest

from facts import FACTS, UNRELATED, editor_for
from lemoe_hf.editing import explanation
from lemoe_hf.editing.explanation import acting, looked_at
from lemoe_hf.routing.anchors import Match
from lemoe_hf.routing.text import Option, Question, Text


PROMPTS = [FACTS[0].prompt, UNRELATED[0], "Is Zembla far from the lake and the sea?", FACTS[1].prompt]


def experts_of(editor, prompts: list[str]) -> list[list[int]]:
    return [acting(text) for text, _ in looked_at(editor, tokens_of(editor, prompts))]


def tokens_of(editor, prompts: list[str]) -> list[list[int]]:
    return [editor.tokenizer(prompt)["input_ids"] for prompt in prompts]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_prompts_of_all_lengths_are_routed_together_as_alone(tokenizer, family):
    editor = editor_for(tokenizer, family=family)
    editor.edit(FACTS[:3])
    assert experts_of(editor, PROMPTS) == [[0], [], [1], [1]]
    assert [experts_of(editor, [prompt]) for prompt in PROMPTS] == [[[0]], [[]], [[1]], [[1]]]
    assert [editor.explain(prompt).expert for prompt in PROMPTS] == [0, None, 1, 1]


def test_a_text_tells_all_that_was_seen_of_it(tokenizer):
    """Wherever it stands in a batch: its own tokens, and where which edits might have been asked for."""
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:3])
    prompts = [*PROMPTS, "Zembla? Never heard of it"]
    found = looked_at(editor, tokens_of(editor, prompts))
    for (text, questions), tokens in zip(found, tokens_of(editor, prompts), strict=True):
        assert text.ids == tokens
        assert text.ends == {len(tokens) - 1}
        assert [question.column for question in questions] == sorted({question.column for question in questions})
    options = [[[option.edit for option in each.options] for each in questions] for _, questions in found]
    own = [[each.own and each.own.edit for each in questions] for _, questions in found]
    assert (own[0][-1], own[3][-1]) == (0, 1)
    assert options[2] == [[1]]
    assert options[4] == [[1], [1]]


def test_where_nothing_was_edited_there_is_nothing_to_see(tokenizer):
    editor = editor_for(tokenizer)
    tokens = tokens_of(editor, UNRELATED)
    assert looked_at(editor, tokens) == [(Text(), [])] * 3
    editor.edit(FACTS[0])
    assert experts_of(editor, UNRELATED) == [[], [], []]
    assert acting(Text()) == []


def test_experts_that_are_mixed_act_together(tokenizer):
    editor = editor_for(tokenizer, routing="kv_anchor", top_k=2, gate_value="softmax")
    editor.edit(FACTS[:3])
    assert [len(experts) for experts in experts_of(editor, PROMPTS)] == [2, 0, 2, 2]


def test_the_edit_that_comes_nearest_is_named_where_none_is_asked_for(tokenizer, monkeypatch):
    """Scores of relations are mostly negative, and they are told beside their own threshold; of two questions the surer."""
    editor = editor_for(tokenizer)
    editor.edit([FACTS[0], FACTS[1]])

    def option(edit: int, threshold: float) -> Option:
        return Option(Match(0, 0, 0, 1.0, edit, edit, False, 0.9), edit, edit, edit, threshold)

    questions = [
        Question(3, "mark", None, [option(0, 1.0), option(1, 2.0)], [-5.0, -2.5]),
        Question(9, "end", None, [option(0, 1.0), option(1, 2.0)], [-2.0, -3.0]),
    ]
    text = Text()
    text.found = looked_at(editor, tokens_of(editor, [BOTH]))[0][0].found
    monkeypatch.setattr(explanation, "looked_at", lambda *args: [(text, questions)])
    found = editor.explain(BOTH)
    assert (found.matched.strip(), found.deferred) == ("Shmavon Vardanyan", True)
    assert (found.relation_score, found.relation_threshold) == (-2.0, 1.0)


BOTH = "I read of Shmavon Vardanyan in Zembla"


def test_an_adapter_that_is_off_explains_nothing(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    with pytest.raises(ValueError, match="disabled.*Leave"), editor.model.disable_adapter():
        editor.explain(FACTS[0].prompt)
    with pytest.raises(TypeError, match="One prompt is explained at a time"):
        editor.explain([FACTS[0].prompt])


def test_a_whole_prompt_is_found_whole_whatever_the_threshold(tokenizer):
    editor = editor_for(tokenizer, threshold=0.5)
    editor.edit(FACTS[0])
    assert editor.explain(FACTS[0].prompt).threshold == 1.0
