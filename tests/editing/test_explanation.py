"""Routes of several prompts at once, as `explain` has them one by one."""

from __future__ import annotations

import pytest

from facts import FACTS, UNRELATED, editor_for
from lemoe_hf.editing import explanation
from lemoe_hf.editing.explanation import acting, asked_for, routed


PROMPTS = [FACTS[0].prompt, UNRELATED[0], "Is Zembla far from the lake and the sea?", FACTS[1].prompt]


def experts_of(editor, prompts: list[str]) -> list[list[int]]:
    route = routed(editor, [editor.tokenizer(prompt)["input_ids"] for prompt in prompts])
    return [acting(route, row) for row in range(len(prompts))]


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba"])
def test_prompts_of_all_lengths_are_routed_together_as_alone(tokenizer, family):
    editor = editor_for(tokenizer, family=family)
    editor.edit(FACTS[:3])
    assert experts_of(editor, PROMPTS) == [[0], [], [1], [1]]
    assert [experts_of(editor, [prompt]) for prompt in PROMPTS] == [[[0]], [[]], [[1]], [[1]]]
    assert [editor.explain(prompt).expert for prompt in PROMPTS] == [0, None, 1, 1]


def test_where_all_prompts_are_deferred_there_is_no_route(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    assert routed(editor, [tokenizer(prompt)["input_ids"] for prompt in UNRELATED]) is None
    assert acting(None) == []
    assert asked_for(None) == {}


def test_experts_that_are_mixed_act_together(tokenizer):
    editor = editor_for(tokenizer, routing="kv_anchor", top_k=2, gate_value="softmax")
    editor.edit(FACTS[:3])
    assert [len(experts) for experts in experts_of(editor, PROMPTS)] == [2, 0, 2, 2]


def test_the_edit_that_comes_nearest_is_named_where_none_is_asked_for(tokenizer, monkeypatch):
    """Scores of relations are mostly negative, and an edit whose subject stands elsewhere has none."""
    editor = editor_for(tokenizer)
    editor.edit([FACTS[0], FACTS[1]])
    monkeypatch.setattr(explanation, "acting", lambda route: [])
    monkeypatch.setattr(explanation, "asked_for", lambda route: {0: (-2.0, 1.0)})
    found = editor.explain("I read of Shmavon Vardanyan in Zembla")
    assert (found.matched.strip(), found.relation_score, found.deferred) == ("Shmavon Vardanyan", -2.0, True)


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
