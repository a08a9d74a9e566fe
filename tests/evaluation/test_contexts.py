"""An edit's prompt in other surroundings."""

from __future__ import annotations

import copy

import pytest
from tokenizers.processors import TemplateProcessing

from facts import FACTS, editor_for
from lemoe_hf import Edit, EditEvaluator
from lemoe_hf.data.reference import reference_prompts, unrelated_sentences
from lemoe_hf.evaluation import contexts as module
from lemoe_hf.evaluation.contexts import in_chat, unrelated


TEMPLATE = "{% for turn in messages %}[{{ turn.content }}]{% endfor %}{% if add_generation_prompt %} So: {% endif %}"


@pytest.fixture
def chatting(tokenizer):
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = TEMPLATE
    return chatting


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """What the model is asked; it answers with nothing but the first target."""
    asked = []

    def answers(model, tokenizer, prompts, bounds, batch_size):
        asked.append(list(prompts))
        assert all(bound >= 4 for bound in bounds)
        return [" Yemen." for _ in prompts]

    monkeypatch.setattr(module, "answers", answers)
    return asked


def contexts(edits, tokenizer):
    return EditEvaluator(edits, measures=["contexts"])(editor_for(tokenizer).model, tokenizer)


def test_a_prompt_stands_in_the_template_behind_a_few_sentences_and_at_the_end_of_many(asked, chatting):
    figures = contexts(FACTS[:2], chatting)
    chat, prefix, document = asked
    assert chat == [f"[{edit.prompt}] So: " for edit in FACTS[:2]]
    for texts, least in ((prefix, 50), (document, 500)):
        for text, edit in zip(texts, FACTS[:2], strict=True):
            before = text.removesuffix(edit.prompt)
            assert before != text
            assert least <= len(chatting(before)["input_ids"]) < least + 150
            assert any(before.startswith(sentence) for sentence in unrelated_sentences())
    half = {f"free_reliability_{name}": 0.5 for name in ("chat", "prefix", "document")}
    assert figures == {"num_edits": 2, **half}


def test_nothing_is_calibrated_on_what_stands_before():
    assert not set(unrelated_sentences()) & set(reference_prompts())


def test_without_a_template_there_is_no_chat(asked, tokenizer):
    assert contexts(FACTS[:1], tokenizer).keys() == {
        "num_edits",
        "free_reliability_prefix",
        "free_reliability_document",
    }


def test_what_stands_before_a_prompt_hangs_on_nothing_but_the_prompt(asked, tokenizer):
    contexts(FACTS[:3], tokenizer)
    contexts(FACTS[2:], tokenizer)
    assert asked[0][2] == asked[2][0]
    assert asked[1][2] == asked[3][0]
    assert unrelated(tokenizer, 50, "one prompt") != unrelated(tokenizer, 50, "another")


def test_what_the_tokenizer_puts_before_a_text_is_not_doubled(chatting):
    chatting.chat_template = "<eos>" + TEMPLATE
    assert in_chat(chatting, "Why?") == "<eos>[Why?] So: "
    chatting.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    ids = chatting(in_chat(chatting, "Why?"))["input_ids"]
    assert chatting.decode(ids) == "<eos>[Why?] So: "


def test_it_is_the_edited_model_that_answers(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    prompt = FACTS[0].prompt
    (answer,) = editor.answers([unrelated(tokenizer, 50, prompt) + prompt], 8)
    with editor.model.disable_adapter():
        assert editor.answers([unrelated(tokenizer, 50, prompt) + prompt], 8) != [answer]
    said, unsaid = Edit(prompt, answer.strip()[:4]), FACTS[1]
    scores = EditEvaluator([], measures=["contexts"]).scores(editor.model, tokenizer, [said, unsaid])
    assert [score["free_reliability_prefix"] for score in scores] == [1.0, 0.0]
