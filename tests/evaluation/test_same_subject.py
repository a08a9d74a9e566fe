"""Questions that no edit is about, against the base model's answers."""

from __future__ import annotations

from itertools import zip_longest

import pytest
import torch

from facts import FACTS, UNRELATED, editor_for
from lemoe_hf.evaluation import SameSubject
from lemoe_hf.evaluation import same_subject as module


QUESTIONS = [*UNRELATED, "Does Shmavon Vardanyan like tea?", "How old is Shmavon Vardanyan?"]


@pytest.fixture(scope="module")
def editor(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[0])
    return editor


@torch.no_grad()
def first_tokens(model, tokenizer, question: str) -> list[int]:
    ids = tokenizer(question, return_tensors="pt")["input_ids"]
    output = model.generate(ids, max_new_tokens=10, do_sample=False)[0, ids.shape[1] :]
    return tokenizer(tokenizer.decode(output, skip_special_tokens=True))["input_ids"]


def test_what_is_kept_agrees_with_generating_one_at_a_time(editor, tokenizer):
    shares, same = [], []
    for question in QUESTIONS:
        after = first_tokens(editor.model, tokenizer, question)
        with editor.model.disable_adapter():
            before = first_tokens(editor.model, tokenizer, question)
        pairs = list(zip_longest(before, after))[:10]
        shares.append(sum(a == b for a, b in pairs) / len(pairs))
        same.append(before == after)
    assert same == [True, True, True, False, False]  # the edit answers whatever names its subject
    assert any(0 < share < 1 for share in shares)
    scores = SameSubject([]).scores(editor.model, tokenizer, QUESTIONS)
    assert [score["same_subject_kept"] for score in scores] == shares
    assert [score["same_subject_exact"] for score in scores] == [1.0, 1.0, 1.0, 0.0, 0.0]
    figures = SameSubject(QUESTIONS, batch_size=2)(editor.model, tokenizer)
    assert figures == {
        "num_questions": 5,
        "same_subject_kept": pytest.approx(sum(shares) / 5),
        "same_subject_exact": 0.6,
        "same_subject_kl": pytest.approx(sum(score["same_subject_kl"] for score in scores) / 5, rel=1e-4),
    }


@torch.no_grad()
def test_the_divergence_is_that_of_the_token_that_comes_next(editor, tokenizer):
    scores = SameSubject([]).scores(editor.model, tokenizer, QUESTIONS)
    assert [score["same_subject_kl"] for score in scores[:3]] == [0.0, 0.0, 0.0]
    for question, score in zip(QUESTIONS[3:], scores[3:], strict=True):
        ids = tokenizer(question, return_tensors="pt")["input_ids"]
        after = editor.model(ids).logits[0, -1].log_softmax(-1)
        with editor.model.disable_adapter():
            before = editor.model(ids).logits[0, -1].log_softmax(-1)
        expected = (before.exp() * (before - after)).sum().item()
        assert 0 < expected == pytest.approx(score["same_subject_kl"], rel=1e-3)


def test_the_base_model_answers_once_for_all_adapters(editor, tokenizer, tmp_path, monkeypatch):
    expected = SameSubject(QUESTIONS, work=tmp_path)(editor.model, tokenizer)
    base_runs, answers = [], module.answers

    def counted(model, *args):
        base_runs.extend([1] * (model.get_model_status().enabled is False))
        return answers(model, *args)

    monkeypatch.setattr(module, "answers", counted)
    other = editor_for(tokenizer)
    other.edit(FACTS[1])
    assert SameSubject(QUESTIONS, work=tmp_path)(other.model, tokenizer)["same_subject_exact"] == 1.0
    assert base_runs == []
    assert SameSubject(QUESTIONS, work=tmp_path)(editor.model, tokenizer) == expected
    assert SameSubject(QUESTIONS)(editor.model, tokenizer) == expected
    assert base_runs == [1]
