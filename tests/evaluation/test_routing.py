"""Which prompts reach their own edit's expert."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model

from facts import FACTS, editor_for
from lemoe_hf import Edit, EditEvaluator
from tiny import tiny


EDITS = [
    replace(
        FACTS[0], rephrase_prompt=("Shmavon Vardanyan comes from", "He comes from"), locality_prompt="Is it late?"
    ),
    replace(FACTS[1], rephrase_prompt="Zembla is ruled from", locality_prompt=("Where is Zembla?", "My sister")),
    replace(FACTS[2], rephrase_prompt="Shmavon Vardanyan leads"),
    FACTS[3],  # never made
]


@pytest.fixture(scope="module")
def editor(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:3])
    return editor


def routing(editor, edits, batch_size=16) -> list[dict[str, float]]:
    return EditEvaluator(edits, batch_size, measures=["routing"]).scores(editor.model, editor.tokenizer, edits)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_prompts_reach_their_own_expert_or_not(editor, batch_size):
    found = {"routed_prompt": 1.0, "deferred_prompt": 0.0}
    assert routing(editor, EDITS, batch_size) == [
        found | {"routed_rephrase": 0.5, "deferred_rephrase": 0.5, "deferred": 1.0},
        found | {"routed_rephrase": 1.0, "deferred_rephrase": 0.0, "deferred": 0.5},
        found | {"routed_rephrase": 0.0, "deferred_rephrase": 0.0},  # another edit's expert answers that
        {"routed_prompt": 0.0, "deferred_prompt": 1.0},
    ]


def test_figures_are_means_over_edits(editor, tokenizer):
    figures = EditEvaluator(EDITS, measures=["routing"])(editor.model, tokenizer)
    falsely = {"deferred_prompt": 0.25, "deferred_rephrase": pytest.approx(1 / 6)}
    assert figures == {"num_edits": 4, "routed_prompt": 0.75, "routed_rephrase": 0.5, "deferred": 0.75} | falsely


def test_a_prompt_that_was_edited_again_reaches_the_later_edit(tokenizer):
    editor = editor_for(tokenizer)
    later = Edit(FACTS[0].prompt, "Oman", subject=FACTS[0].subject)
    editor.edit(FACTS[0])
    editor.edit(later)
    assert [score["routed_prompt"] for score in routing(editor, [FACTS[0], later])] == [0.0, 1.0]
    editor.undo(1)
    assert [score["routed_prompt"] for score in routing(editor, [FACTS[0], later])] == [1.0, 0.0]


def test_edits_of_one_expert_reach_it_together(tokenizer):
    editor = editor_for(tokenizer, edits_per_expert=2, expert_dim=16)
    editor.edit(FACTS[:3])
    assert [score["routed_prompt"] for score in routing(editor, FACTS[:4])] == [1.0, 1.0, 1.0, 0.0]


def test_nothing_is_routed_while_the_adapter_is_off(editor):
    with editor.model.disable_adapter():
        scores = routing(editor, EDITS[:1])
    falsely = {"deferred_prompt": 1.0, "deferred_rephrase": 1.0}
    assert scores == [{"routed_prompt": 0.0, "routed_rephrase": 0.0, "deferred": 1.0} | falsely]


def test_a_router_that_errs_is_found_out(tokenizer):
    editor = editor_for(tokenizer, routing="kv_anchor", router_loss=0.0)
    editor.edit(FACTS)
    chosen = [editor.explain(fact.prompt).expert for fact in FACTS]
    assert chosen != list(range(6)), "choose facts on which the router errs"
    right = [float(expert == own) for own, expert in enumerate(chosen)]
    assert [score["routed_prompt"] for score in routing(editor, FACTS)] == right


def test_other_methods_have_no_routes(tokenizer):
    model = get_peft_model(tiny(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(TypeError, match="needs a PeftModel with an adapter of lemoe_hf"):
        EditEvaluator(FACTS, measures=["routing"])(model, tokenizer)
