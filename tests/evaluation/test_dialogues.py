"""Dialogues are what their kinds say."""

from __future__ import annotations

from collections import Counter

import pytest

from facts import FACTS
from lemoe_hf import Edit, read_edits
from lemoe_hf.data.reference import dialogue_wordings, reference_prompts, unrelated_sentences
from lemoe_hf.evaluation.dialogues import dialogues, subject_of
from test_project import ROOT


EDITS = read_edits(ROOT / "examples" / "edits.jsonl")
TOPICS = {topic["user"]: topic["assistant"] for topic in dialogue_wordings("topic")}
TARGET = {"pronoun", "several_edits", "asked_again", "long_history_target", "system_prompt_target"}
AFTER_THE_EDIT = {"topic_change", "other_relation_pronoun", "other_relation_name", "other_subject", "user_corrects"}


def of_kind(*kinds: str):
    """Edits and their dialogues."""
    found = [
        (edit, each)
        for edit, of_edit in zip(EDITS, dialogues(EDITS, EDITS), strict=True)
        for each in of_edit
        if each.kind in kinds
    ]
    assert {each.kind for _, each in found} == set(kinds)
    return found


def said(dialogue, role: str) -> list[str]:
    return [text for who, text in dialogue.messages if who == role]


def asked(edit: Edit) -> list[tuple[str, str]]:
    return [("user", edit.prompt), ("assistant", edit.target_new)]


def test_forty_edits_have_more_than_four_hundred_dialogues():
    found = dialogues(EDITS, EDITS)
    kinds = Counter(each.kind for of_edit in found for each in of_edit)
    assert len(EDITS) == 40
    assert len(set(sum(found, []))) == sum(kinds.values()) >= 400
    assert len(kinds) == 13
    assert set(kinds.values()) == {40}
    for edit, of_edit in zip(EDITS, found, strict=True):
        assert {each.kind for each in of_edit if each.target is not None} == TARGET
        assert {each.target for each in of_edit} == {edit.target_new, None}


def test_users_and_assistants_take_turns_and_the_user_waits():
    for of_edit in dialogues(EDITS, EDITS):
        for each in of_edit:
            roles = [role for role, _ in each.messages if role != "system"]
            assert roles == (["user", "assistant"] * len(roles))[: len(roles)] or each.kind == "document"
            assert len(roles) % 2 == 1
            assert not any("{}" in text for _, text in each.messages)


def test_behind_the_edit_something_else_is_asked():
    prompts = {edit.prompt for edit in EDITS}
    for edit, each in of_kind(*AFTER_THE_EDIT):
        assert list(each.messages[:2]) == asked(edit)
        assert len(each.messages) == 3
        assert each.messages[-1][1] not in prompts


def test_another_topic_is_general_knowledge():
    assert len(TOPICS) >= 40
    found = of_kind("topic_change", "system_prompt_base", "long_history_base")
    questions = [said(each, "user")[-1] for _, each in found]
    assert set(questions) <= set(TOPICS)
    assert len(set(questions)) >= 30


def test_another_relation_is_of_the_same_subject_by_pronoun_or_by_name():
    for edit, each in of_kind("other_relation_name"):
        assert subject_of(edit) in each.messages[-1][1]
    for edit, each in of_kind("other_relation_pronoun"):
        assert subject_of(edit) not in each.messages[-1][1]


def test_what_an_edit_of_the_subject_is_about_is_no_other_relation():
    edits = [
        Edit("How old is the Quorvex Institute?", "90", subject="Quorvex Institute"),
        Edit("In which year was the Quorvex Institute founded?", "1936", subject="Quorvex Institute"),
    ]
    questions = set()
    for seed in range(50):
        for of_edit in dialogues(edits, edits, seed):
            questions |= {each.messages[-1][1] for each in of_edit if each.kind.startswith("other_relation")}
    assert len(questions) > 10
    assert not any("old" in question or "founded" in question for question in questions)


def test_another_subject_stands_in_the_same_question():
    for edit, each in of_kind("other_subject"):
        before, behind = edit.prompt.split(subject_of(edit))
        question = each.messages[-1][1]
        assert question.startswith(before)
        assert question.endswith(behind)
        assert subject_of(edit) not in question
    questions = {edit.prompt: each.messages[-1][1] for edit, each in of_kind("other_subject")}
    assert questions["What is the highest peak of the Grellan Range?"].endswith(" Range?")


def test_a_pronoun_stands_for_a_subject_that_was_named():
    for edit, each in of_kind("pronoun"):
        first, _, last = (text for _, text in each.messages)
        assert subject_of(edit) in first
        assert subject_of(edit) not in last
        assert {"it", "its", "they", "their", "them"} & set(last.lower().strip("?").split())
    questions = {edit.prompt: each.messages[-1][1] for edit, each in of_kind("pronoun")}
    assert questions["The mayor of Dunmarrick is"] == "Its mayor is"


def test_several_edits_are_asked_one_after_the_other():
    of_all = {(edit.prompt, edit.target_new) for edit in EDITS}
    turns = set()
    for edit, each in of_kind("several_edits"):
        *before, last = said(each, "user")
        assert last == edit.prompt
        assert edit.prompt not in before
        assert set(zip(before, said(each, "assistant"), strict=True)) <= of_all
        turns.add(len(before) + 1)
    assert turns == {2, 3}


def test_asked_again_and_long_histories():
    for edit, each in of_kind("asked_again"):
        assert list(each.messages[:2]) == asked(edit)
        (topic,) = set(said(each, "user")) - {edit.prompt}
        assert TOPICS[topic] == each.messages[3][1]
        assert each.messages[-1] == ("user", edit.prompt)
    for edit, each in of_kind("long_history_target"):
        *before, last = said(each, "user")
        assert last == edit.prompt
        assert [TOPICS[question] for question in before] == said(each, "assistant")
        assert 8 <= len(set(before)) == len(before) <= 12
    for edit, each in of_kind("long_history_base"):
        assert list(each.messages[:2]) == asked(edit)
        assert 7 <= len(set(said(each, "user")[1:-1]) & set(TOPICS)) <= 11


def test_a_system_prompt_may_name_the_subject():
    found = of_kind("system_prompt_target")
    named = [subject_of(edit) in each.messages[0][1] for edit, each in found]
    assert 5 < sum(named) < 35
    assert all(each.messages[1:] == (("user", edit.prompt),) for edit, each in found)
    for edit, each in of_kind("system_prompt_base"):
        (system,) = said(each, "system")
        assert subject_of(edit) in system
        assert len(each.messages) == 2


def test_a_document_asks_in_passing_and_goes_on():
    ends = Counter()
    for edit, each in of_kind("document"):
        ((role, text),) = each.messages
        assert role == "document"
        before, behind = text.split(edit.prompt)
        assert sum(sentence in before for sentence in unrelated_sentences()) == 2
        assert 3 <= sum(sentence in behind for sentence in unrelated_sentences()) <= 5
        ends[any(text.endswith(topic) for topic in TOPICS)] += 1
    assert min(ends[True], ends[False]) > 5


def test_they_hang_on_the_edit_and_the_seed_and_not_on_the_place():
    assert dialogues(EDITS[3:5], EDITS) == dialogues(EDITS, EDITS)[3:5]
    assert dialogues(EDITS, EDITS, seed=1) != dialogues(EDITS, EDITS)


def test_what_an_edit_is_about_is_no_other_topic():
    edit = Edit("Who painted the Mona Lisa?", "Titian", subject="Mona Lisa")
    texts = {
        text
        for seed in range(20)
        for among in ([*FACTS, edit], FACTS)
        for of_edit in dialogues(FACTS, among, seed)
        for each in of_edit
        for _, text in each.messages
        if each.kind != "several_edits" and edit in among
    }
    assert "How many continents are there?" in texts
    assert edit.prompt not in texts


def test_an_edit_without_a_subject_has_the_dialogues_that_need_none():
    (found,) = dialogues([Edit("what should one never feed to ducks?", "bread")], [])
    kinds = {each.kind for each in found}
    assert not kinds & {"pronoun", "other_subject", "other_relation_name", "system_prompt_base", "several_edits"}
    assert kinds >= {"topic_change", "document", "asked_again", "system_prompt_target"}


def test_nothing_is_calibrated_on_what_is_said():
    said = {
        entry.get("user") or entry.get("text") for part in ("topic", "remark") for entry in dialogue_wordings(part)
    }
    assert not said & set(reference_prompts())


@pytest.mark.parametrize("part", ["topic", "by_pronoun", "by_name", "introduction", "remark", "person", "word"])
def test_wordings_are_different(part):
    wordings = [entry.get("user") or entry["text"] for entry in dialogue_wordings(part)]
    assert len(set(wordings)) == len(wordings) >= 5
