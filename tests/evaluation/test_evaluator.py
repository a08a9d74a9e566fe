from dataclasses import replace

import pytest
import torch

from facts import FACTS, editor_for
from lemoe_hf import Edit, EditEvaluator
from lemoe_hf.editing.tokens import continuation
from lemoe_hf.evaluation.metrics import kl_divergence
from tiny import adapter_state, assert_same


EDITS = [
    replace(
        FACTS[0],
        rephrase_prompt="Shmavon Vardanyan is a citizen of",
        locality_prompt="The train stops in",
        locality_ground_truth="a small town",
    ),
    replace(FACTS[1], locality_prompt="My sister bought"),
    # Never made: the base model answers.
    replace(FACTS[2], rephrase_prompt="At the head of the Quorvex Institute is", locality_prompt="Is Zembla far?"),
]


@pytest.fixture(scope="module")
def editor(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(EDITS[:2])
    return editor


@pytest.fixture(scope="module")
def measures(editor, tokenizer):
    return EditEvaluator(EDITS)(editor.model, tokenizer)


@torch.no_grad()
def logits_by_hand(model, tokenizer, prompt: str, target: str) -> tuple[torch.Tensor, list[int]]:
    """Logits at the target of one text alone, of which only the prompt is routed."""
    ids = tokenizer(prompt)["input_ids"]
    answer = continuation(tokenizer, prompt, target)
    labels = [-100] * len(ids) + answer
    logits = model(input_ids=torch.tensor([ids + answer]), labels=torch.tensor([labels])).logits[0]
    return logits[len(ids) - 1 : -1], answer


def accuracy_by_hand(model, tokenizer, prompts) -> float:
    shares = []
    for prompt, target in prompts:
        logits, answer = logits_by_hand(model, tokenizer, prompt, target)
        right = [int(row.argmax()) == token for row, token in zip(logits, answer, strict=True)]
        shares.append(sum(right) / len(right))
    return sum(shares) / len(shares)


@torch.no_grad()
def greedy_by_hand(model, tokenizer, prompt: str, target: str) -> str:
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    bound = len(continuation(tokenizer, prompt, target)) + 2
    output = model.generate(ids, max_new_tokens=bound, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(output, skip_special_tokens=True).strip().lower()


def test_teacher_forced_numbers_agree_with_one_text_at_a_time(editor, tokenizer, measures):
    pairs = [(edit.prompt, edit.target_new) for edit in EDITS]
    assert measures["reliability"] == pytest.approx(accuracy_by_hand(editor.model, tokenizer, pairs))
    pairs = [(edit.rephrase_prompt, edit.target_new) for edit in EDITS if edit.rephrase_prompt]
    assert measures["generality"] == pytest.approx(accuracy_by_hand(editor.model, tokenizer, pairs))
    assert 2 / 3 <= measures["reliability"] < 1


def test_free_numbers_agree_with_generating_one_at_a_time(editor, tokenizer, measures):
    answers = [greedy_by_hand(editor.model, tokenizer, edit.prompt, edit.target_new) for edit in EDITS]
    begins = [text.startswith(edit.target_new.lower()) for text, edit in zip(answers, EDITS, strict=True)]
    same = [text == edit.target_new.lower() for text, edit in zip(answers, EDITS, strict=True)]
    assert begins == [True, True, False]
    assert measures["free_reliability"] == pytest.approx(sum(begins) / 3)
    assert measures["free_reliability_strict"] == pytest.approx(sum(same) / 3)
    rephrased = [edit for edit in EDITS if edit.rephrase_prompt]
    answers = [greedy_by_hand(editor.model, tokenizer, edit.rephrase_prompt, edit.target_new) for edit in rephrased]
    begins = [text.startswith(edit.target_new.lower()) for text, edit in zip(answers, rephrased, strict=True)]
    assert measures["free_generality"] == pytest.approx(sum(begins) / 2)


def test_locality_is_exact_where_prompts_are_deferred(editor, tokenizer, measures):
    # Two of the locality prompts are about nothing that was edited, and one has the subject of an edit.
    assert measures["locality_exact"] == pytest.approx(2 / 3)
    alone = EditEvaluator(EDITS[:2])(editor.model, tokenizer)
    assert (alone["locality"], alone["locality_exact"], alone["locality_kl"]) == (1.0, 1.0, 0.0)


def test_the_divergence_is_that_at_the_answer(editor, tokenizer, measures):
    after, _ = logits_by_hand(editor.model, tokenizer, "Is Zembla far?", "the")
    with editor.model.disable_adapter():
        before, _ = logits_by_hand(editor.model, tokenizer, "Is Zembla far?", "the")
    assert measures["locality_kl"] == pytest.approx(kl_divergence(before, after) / 3, rel=1e-3)
    assert measures["locality_kl"] > 0
    same = float((before.argmax(-1) == after.argmax(-1)).float().mean())
    assert measures["locality"] == pytest.approx((1 + 1 + same) / 3)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_batch_size_changes_nothing(editor, tokenizer, measures, batch_size):
    assert EditEvaluator(EDITS, batch_size)(editor.model, tokenizer) == pytest.approx(measures, rel=1e-4)


def test_one_of_three_tokens(editor, tokenizer, monkeypatch):
    """A model that predicts the first of three target tokens, and then something else, is right by a third."""
    edit = Edit("two and", "%%")
    target = continuation(tokenizer, edit.prompt, edit.target_new)
    assert len(target) == 3
    evaluator = EditEvaluator([edit])

    def logits(model, tokenizer, prompts, targets):
        rows = torch.zeros(7, 320)
        rows[4, target[0]] = 1.0
        rows[5:, 300] = 1.0
        yield rows, 4, target

    monkeypatch.setattr(evaluator, "logits", logits)
    assert evaluator.teacher_forced(None, tokenizer, [edit.prompt], [edit.target_new]) == [pytest.approx(1 / 3)]


def test_the_answer_has_no_part_in_the_routing(editor, tokenizer):
    """A locality answer that names an edited subject is still predicted by the base model."""
    edit = Edit(
        "x", "y", locality_prompt="They come from", locality_ground_truth="Zembla, and Shmavon Vardanyan does too"
    )
    result = EditEvaluator([edit])(editor.model, tokenizer)
    assert (result["locality_exact"], result["locality_kl"]) == (1.0, 0.0)


def test_only_what_an_edit_has_is_measured(editor, tokenizer):
    result = EditEvaluator([FACTS[0]])(editor.model, tokenizer)
    keys = {"num_edits", "reliability", "perplexity", "free_reliability", "free_reliability_strict"}
    assert result.keys() == keys
    assert (result["num_edits"], result["reliability"], result["free_reliability"]) == (1, 1.0, 1.0)


def test_space_around_prompts_does_not_matter(editor, tokenizer, measures):
    spaced = [replace(edit, prompt=edit.prompt + " ", target_new=f" {edit.target_new} ") for edit in EDITS]
    assert EditEvaluator(spaced)(editor.model, tokenizer) == pytest.approx(measures)


@pytest.mark.parametrize("mode", [True, False])
def test_the_model_is_left_as_it_was(editor, tokenizer, mode):
    editor.model.train(mode)
    state = adapter_state(editor.model)
    EditEvaluator(EDITS)(editor.model, tokenizer)
    assert all(module.training is mode for module in editor.model.modules())
    editor.model.eval()
    assert_same(adapter_state(editor.model), state)


def test_the_padding_side_does_not_matter(editor, tokenizer, measures):
    side = tokenizer.padding_side
    tokenizer.padding_side = "right" if side == "left" else "left"
    other = EditEvaluator(EDITS)(editor.model, tokenizer)
    tokenizer.padding_side = side
    assert other == measures
