"""The last turns of dialogues, on tiny models."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from facts import FACTS, editor_for, learner
from lemoe_hf import EditEvaluator
from lemoe_hf.evaluation import conversation as module
from lemoe_hf.evaluation import dialogues as writing
from lemoe_hf.evaluation.conversation import Conversation, is_continued, rendered, tokens_of
from lemoe_hf.evaluation.dialogues import Dialogue, chat, dialogues
from lemoe_hf.evaluation.journal import Journal
from lemoe_hf.evaluation.metrics import agreement
from tiny import edited


EDITS = FACTS[:2]
TEMPLATE = (
    "{% for turn in messages %}{{ turn.role }}[{{ turn.content }}]{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant[{% endif %}"
)
TALK = chat("topic_change", [("Where is Zembla?", "In the north.")], "Why?")


@pytest.fixture(autouse=True)
def _short_histories(monkeypatch):
    monkeypatch.setattr(writing, "LONG", range(2, 4))


@pytest.fixture(params=["chat", "plain"])
def speaking(request, tokenizer):
    speaking = copy.deepcopy(tokenizer)
    speaking.chat_template = TEMPLATE if request.param == "chat" else None
    return speaking


@pytest.fixture(scope="module")
def editor(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(EDITS[0])  # the other one is never made
    return editor


def judge(model, tokenizer, written, batch_size=16):
    conversation = Conversation(batch_size, EDITS, Journal(None, "base"), Journal(None, "answers"))
    return list(conversation.judged(model, tokenizer, written))


def measure(model, tokenizer, work=None, batch_size=16, edits=EDITS):
    return EditEvaluator(edits, batch_size, measures=["conversation"], work=work)(model, tokenizer)


@torch.no_grad()
def by_hand(model, tokenizer, dialogue: Dialogue, num: int) -> list[int]:
    ids = tokens_of(tokenizer, dialogue)
    output = model.generate(torch.tensor([ids]), max_new_tokens=num, do_sample=False)
    return [token for token in output[0, len(ids) :].tolist() if token not in tokenizer.all_special_ids]


def test_an_adapter_that_does_nothing_is_right_where_the_base_model_is_and_nowhere_else(speaking):
    figures = measure(edited(), speaking)
    kinds = {each.kind: each.target for of_edit in dialogues(EDITS, EDITS) for each in of_edit}
    assert len(kinds) == 13
    for kind, target in kinds.items():
        assert figures[f"conversation_{kind}"] == float(target is None)
    assert figures["num_edits"] == 2
    assert (figures["conversation_base"], figures["conversation_kept"], figures["conversation_target"]) == (1, 1, 0)
    assert (figures["conversation_cache"], figures["conversation_alone"]) == (1, 1)
    assert figures["conversation"] == pytest.approx(8 / 13)


def test_answers_agree_with_generating_one_at_a_time(editor, speaking):
    written = [each for of_edit in dialogues(EDITS, EDITS) for each in of_edit]
    # Random models seldom say what they should.
    again = next(each for each in written if each.kind == "asked_again")
    answer = speaking.decode(by_hand(editor.model, speaking, again, 16)).strip()
    written.append(replace(again, target=answer[:5].upper()))
    judged = judge(editor.model, speaking, written, batch_size=4)
    assert [each.dialogue for each in judged] == written
    assert {each.is_right for each in judged if each.dialogue.target is not None} == {True, False}
    for each in judged:
        found = by_hand(editor.model, speaking, each.dialogue, 16)
        if each.dialogue.target is not None:
            begins = speaking.decode(found).strip().lower().startswith(each.dialogue.target.lower())
            assert each.is_right == begins
            assert each.answer == found[: len(each.answer)]
            continue
        with editor.model.disable_adapter():
            expected = by_hand(editor.model, speaking, each.dialogue, 16)
        assert each.answer == found
        assert each.is_right == (found == expected)
        assert each.kept == agreement(expected, found, 16)
        assert each.expected == speaking.decode(expected)


def test_figures_are_means_over_the_dialogues(editor, tokenizer):
    written = [each for of_edit in dialogues(EDITS, EDITS) for each in of_edit]
    judged = judge(editor.model, tokenizer, written)
    figures = measure(editor.model, tokenizer)

    def share(*kinds: str) -> float:
        right = [each.is_right for each in judged if each.dialogue.kind in kinds]
        return pytest.approx(sum(right) / len(right))

    targets = {each.kind for each in written if each.target is not None}
    others = {each.kind for each in written} - targets
    assert figures["conversation"] == share(*targets, *others)
    assert figures["conversation_target"] == share(*targets)
    assert figures["conversation_base"] == share(*others)
    assert 0 < figures["conversation_base"] <= 1
    for kind in targets | others:
        assert figures[f"conversation_{kind}"] == share(kind)


def test_the_base_model_answers_once_for_all_adapters(editor, tokenizer, tmp_path, monkeypatch):
    expected = measure(editor.model, tokenizer)
    assert measure(learner(), tokenizer, tmp_path)["conversation_base"] == 1.0
    by_the_base, continuations = [], module.continuations

    def counted(model, *args):
        by_the_base.append(model.get_model_status().enabled is False)
        return continuations(model, *args)

    monkeypatch.setattr(module, "continuations", counted)
    assert measure(editor.model, tokenizer, tmp_path) == expected
    assert by_the_base
    assert not any(by_the_base)
    monkeypatch.setattr(module, "continuations", lambda *args: 1 / 0)
    assert measure(editor.model, tokenizer, tmp_path) == expected


def test_an_interrupted_measure_goes_on_behind_the_last_batch(editor, tokenizer, tmp_path, monkeypatch):
    expected = measure(editor.model, tokenizer, batch_size=4)
    batches, continuations = [], module.continuations

    def breaks(model, tokenizer, ids, *args):
        batches.append(len(ids))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return continuations(model, tokenizer, ids, *args)

    monkeypatch.setattr(module, "continuations", breaks)
    with pytest.raises(KeyboardInterrupt):
        measure(editor.model, tokenizer, tmp_path, batch_size=4)
    of_all = (
        3 + 4 + 4 + 2
    )  # five kinds of two edits that ask for them, eight that do not, by two models, and each alone
    assert measure(editor.model, tokenizer, tmp_path, batch_size=4) == expected
    assert len(batches) == 3 + of_all - 2


def test_other_edits_make_other_dialogues(editor, tokenizer, tmp_path):
    """One folder for all: what was measured among these edits is not taken for what is measured among others."""
    alone = measure(editor.model, tokenizer, tmp_path, edits=EDITS[:1])
    assert "conversation_several_edits" not in alone
    assert "conversation_several_edits" in measure(editor.model, tokenizer, tmp_path)


def test_a_cache_that_forgets_is_noticed(speaking, monkeypatch):
    model = edited()
    assert is_continued(model, speaking, TALK)
    generate, sent = model.generate, []

    def forgetful(ids, past_key_values=None, **options):
        sent.append((ids.tolist()[0], past_key_values is not None))
        if past_key_values is not None:
            for layer in past_key_values.layers:
                layer.keys.zero_()
        return generate(ids, past_key_values=past_key_values, **options)

    monkeypatch.setattr(model, "generate", forgetful)
    assert not is_continued(model, speaking, TALK)
    (first, _), (second, on_cache), (again, anew) = sent
    assert second == again
    assert second[: len(first)] == first
    assert (on_cache, anew) == (True, False)
    assert speaking.decode(second).endswith("Why?]<eos>assistant[" if speaking.chat_template else "Why?\nAnswer:")


def test_a_model_without_a_cache_of_keys_is_asked_as_well(tokenizer):
    assert is_continued(edited("mamba"), tokenizer, TALK)


def test_without_a_template_there_are_questions_and_answers(tokenizer):
    assert (
        rendered(tokenizer, TALK.messages)
        == "Question: Where is Zembla?\nAnswer: In the north.\n\nQuestion: Why?\nAnswer:"
    )
    advised = chat("system_prompt_target", [], "Why?", "No.", "Be brief.")
    assert rendered(tokenizer, advised.messages) == "Be brief.\n\nQuestion: Why?\nAnswer:"


def test_a_document_is_in_no_template(tokenizer):
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = TEMPLATE
    document = Dialogue("document", (("document", 'He asked, "Why?" {}'),))
    assert chatting.decode(tokens_of(chatting, document)) == 'He asked, "Why?" {}'


def test_special_tokens_come_once(tokenizer):
    chatting = copy.deepcopy(tokenizer)
    chatting.backend_tokenizer.post_processor = TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    assert chatting.decode(tokens_of(chatting, TALK)).startswith("<eos>Question: Where")
    chatting.chat_template = "{{ eos_token }}" + TEMPLATE
    assert chatting.decode(tokens_of(chatting, TALK)).startswith(
        "<eos>user[Where is Zembla?]<eos>assistant[In the north.]"
    )


def test_a_template_without_system_prompts_gets_them_in_the_first_turn(tokenizer):
    chatting = copy.deepcopy(tokenizer)
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompts') }}{% endif %}"
    chatting.chat_template = refusal + TEMPLATE
    advised = chat("system_prompt_target", [], "Why?", "No.", "Be brief.")
    assert rendered(chatting, advised.messages) == "user[Be brief.\n\nWhy?]<eos>assistant["
