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


def test_of_several_prompts_the_score_of_an_edit_is_their_mean(editor, tokenizer):
    texts = (FACTS[0].prompt, "%%%", "Shmavon Vardanyan is a citizen of")
    several = replace(FACTS[0], rephrase_prompt=texts)
    result = EditEvaluator([several, FACTS[1]], measures=["generality"])(editor.model, tokenizer)
    shares = [accuracy_by_hand(editor.model, tokenizer, [(text, FACTS[0].target_new)]) for text in texts]
    assert result["generality"] == pytest.approx(sum(shares) / 3)
    assert 1 / 3 < result["generality"] < 1, "choose texts of which not all are right, nor all others wrong"
    answers = [greedy_by_hand(editor.model, tokenizer, text, FACTS[0].target_new) for text in texts]
    assert result["free_generality"] == pytest.approx(sum(text.startswith("yemen") for text in answers) / 3)
    # An edit counts as much with one rephrasing as with three.
    other = replace(FACTS[1], rephrase_prompt="The capital of Zembla is")
    both = EditEvaluator([several, other], measures=["generality"])(editor.model, tokenizer)
    assert both["generality"] == pytest.approx((result["generality"] + 1) / 2)


def test_portability_is_that_of_its_own_answers(editor, tokenizer):
    asked = [(FACTS[1].prompt, "Onhava"), ("Which land is governed from Onhava?", "Zembla")]
    prompts, answers = zip(*asked, strict=True)
    edit = replace(FACTS[1], portability_prompt=prompts, portability_ground_truth=answers)
    result = EditEvaluator([edit, FACTS[0]])(editor.model, tokenizer)
    assert result["portability"] == pytest.approx(accuracy_by_hand(editor.model, tokenizer, asked))
    begins = [greedy_by_hand(editor.model, tokenizer, *pair).startswith(pair[1].lower()) for pair in asked]
    assert begins == [True, False]
    assert (result["free_portability"], result["free_portability_strict"]) == (0.5, 0.5)
    assert not any("portability" in name for name in EditEvaluator(EDITS)(editor.model, tokenizer))


@pytest.mark.parametrize("group", ["reliability", "generality", "locality"])
def test_only_the_measures_that_were_asked_for_are_taken(editor, tokenizer, measures, group):
    result = EditEvaluator(EDITS, measures=[group])(editor.model, tokenizer)
    names = {name for name in measures if group in name} | ({"perplexity"} if group == "reliability" else set())
    assert result == pytest.approx({name: measures[name] for name in names | {"num_edits"}})


@pytest.mark.parametrize("wrong", [["fluency"], ["locality", "fluency"], "locality"])
def test_measures_that_there_are_not(wrong):
    with pytest.raises(ValueError, match=r"choose from reliability, .*routing") as error:
        EditEvaluator(EDITS, measures=wrong)
    assert ("fluency" in str(error.value)) == (wrong != "locality")


def test_in_a_folder_nothing_is_measured_twice(editor, tokenizer, measures, tmp_path, monkeypatch):
    groups = ["reliability", "generality", "locality", "contexts", "routing"]
    first = EditEvaluator(EDITS, measures=groups, work=tmp_path)(editor.model, tokenizer)
    assert first == pytest.approx(first | measures)

    def runs(*args, **kwargs):
        raise AssertionError("the model runs again")

    monkeypatch.setattr(editor.model.base_model.model, "forward", runs)
    assert EditEvaluator(EDITS, measures=groups, work=tmp_path)(editor.model, tokenizer) == first
    assert EditEvaluator(EDITS, work=tmp_path)(editor.model, tokenizer) == {name: first[name] for name in measures}


def test_edits_that_are_none_are_told_what_makes_them():
    for wrong in (FACTS[0], [FACTS[0].to_dict()]):
        with pytest.raises(TypeError, match="list of Edit objects; got .*`read_edits` makes them"):
            EditEvaluator(wrong)
