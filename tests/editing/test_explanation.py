"""Routes of several prompts at once, as `explain` has them one by one."""

from __future__ import annotations

import pytest

from facts import FACTS, UNRELATED, editor_for
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
