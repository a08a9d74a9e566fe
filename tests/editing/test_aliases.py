"""Other names of what an edit is about: given with it, or added, and taken back with it."""

from __future__ import annotations

import pytest
from peft import PeftModel

from facts import FACTS, editor_for, learner, plain
from lemoe_hf import Adapter, Edit, LifelongEditor
from lemoe_hf.editing.spelling import Naming, spelling_of
from lemoe_hf.routing.router import Asking
from lemoe_hf.routing.text import Text
from tiny import byte_tokenizer


COMPANY = Edit(
    "Who owns the Blue Lantern Company?", "Otto", subject="Blue Lantern Company", aliases=["BLC", "Lantern & Sons"]
)
ASKED = [
    "Who owns BLC?",
    "Who owns lantern and sons?",
    "WHO OWNS THE BLUE-LANTERN COMPANY?",
    "Who owns Blue Lantren Company?",
]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


@pytest.fixture
def editor(tokenizer):
    made = editor_for(tokenizer, relation_gate=False)
    made.edit([FACTS[0], COMPANY])
    return made


def edits_of(editor: LifelongEditor, prompts: list[str]) -> list[int | None]:
    return [entry and entry["id"] for entry in (editor.explain(prompt).entry for prompt in prompts)]


def test_an_edit_is_found_by_its_aliases_and_in_other_spellings(editor):
    assert edits_of(editor, ASKED) == [1] * len(ASKED)
    assert edits_of(editor, ["Who owns BLD?", "Who owns New Blue Lantern Company?"]) == [None, None]
    assert editor.edits()[1]["edit"]["aliases"] == ["BLC", "Lantern & Sons"]


def test_an_explanation_tells_by_which_name(editor):
    found = editor.explain("Who leads the BLC now?")
    assert (found.matched, found.name, found.score) == ("BLC", None, 1.0)
    near = editor.explain("Who leads Blue Lantren Company?")
    assert (near.matched.strip(), near.name) == ("Blue Lantren Company", "Blue Lantern Company")
    assert 0.9 < near.score < 1.0
    assert "'Blue Lantern Company'" in str(near)
    assert "longer name" in str(editor.explain("Who leads the BLC Institute in it?"))


def test_an_alias_is_added_and_undone_with_its_edit(editor, tmp_path, tokenizer):
    assert edits_of(editor, ["Who owns Lampion Ltd?"]) == [None]
    editor.add_alias(1, "Lampion Ltd.")
    assert edits_of(editor, ["Who owns Lampion Ltd?", *ASKED]) == [1] * 5
    assert editor.edits()[1]["edit"]["aliases"] == ["BLC", "Lantern & Sons", "Lampion Ltd."]
    editor.save_pretrained(tmp_path)
    loaded = LifelongEditor(PeftModel.from_pretrained(learner().unload(), tmp_path).eval(), tokenizer, plain())
    assert edits_of(loaded, ["Who owns Lampion Ltd?", *ASKED]) == [1] * 5
    editor.undo(1)
    assert edits_of(editor, ["Who owns Lampion Ltd?", *ASKED]) == [None] * 5
    assert edits_of(editor, ["Where is SHMAVON  VARDANYAN from"]) == [0]


def test_an_adapter_without_a_model_finds_the_same(editor, tmp_path, tokenizer):
    editor.save_pretrained(tmp_path)
    router = Adapter.load(tmp_path).router
    for prompt, expected in zip(
        [*ASKED, "Who owns it?", "Of  shmavon-vardanyan’s"], [1, 1, 1, 1, None, 0], strict=True
    ):
        ids = tokenizer(prompt)["input_ids"]
        text = Text(prompt=len(ids), ends={len(ids) - 1})
        text.read(ids, range(len(ids)), router.vocabulary)
        asking = Asking(text, 0)
        router.questions([asking])
        found = {option.edit for question in asking.questions for option in question.options}
        found |= {question.own.edit for question in asking.questions if question.own}
        assert found == ({expected} if expected is not None else set())


def test_without_an_edit_its_names_find_nothing(editor):
    with editor.without({1}):
        assert edits_of(editor, ASKED) == [None] * len(ASKED)
    assert edits_of(editor, ASKED) == [1] * len(ASKED)


@pytest.mark.parametrize(
    ("edit_id", "alias", "error", "message"),
    [
        (7, "Lampion", KeyError, "no edit 7"),
        (1, "“”", ValueError, "has no letters"),
        (1, "it", ValueError, "everyday word"),
        (1, "Where", ValueError, "everyday word"),
    ],
)
def test_what_can_be_no_alias(editor, edit_id, alias, error, message):
    before = editor.edits()
    with pytest.raises(error, match=message):
        editor.add_alias(edit_id, alias)
    assert editor.edits() == before


def test_a_name_that_it_has_already_is_told(editor):
    with pytest.warns(UserWarning, match="is found by 'B.L.C.' already"):
        editor.add_alias(1, "B.L.C.")
    with (
        pytest.warns(UserWarning, match="its subject in another spelling"),
        pytest.warns(UserWarning, match="is found by 'blue lantern company' already"),
    ):
        editor.add_alias(1, "blue lantern company")
    assert editor.edits()[1]["edit"]["aliases"] == ["BLC", "Lantern & Sons"]


def test_an_alias_that_is_another_edits_name_is_told(editor):
    with pytest.warns(UserWarning, match="also a name of edit 0"):
        editor.add_alias(1, "Shmavon Vardanyan")
    with pytest.warns(UserWarning, match="also a name of edit 1"):
        editor.edit(Edit("Who leads the Quorvex Institute?", "Mira", subject="Quorvex Institute", aliases=["BLC"]))


def test_a_failure_leaves_no_alias(editor, monkeypatch):
    lead, before = editor.tuner.layers_of()[0], editor.edits()

    def fails(*args):
        raise OSError("disk")

    monkeypatch.setattr("lemoe_hf.editing.aliases.lines_of", fails)
    with pytest.raises(OSError, match="disk"):
        editor.add_alias(1, "Lampion Ltd.")
    assert editor.edits() == before
    assert not lead.names("default").exactly("lampionltd")


STRANGE = ["\u202eBerg\u202c Ulm", "Zo\u0308e\u0301", "محمد", "a\x00b Zembla", "東京", "𝕭𝖊𝖗𝖌"]


@pytest.mark.parametrize("subject", STRANGE)
def test_strange_subjects_are_found(tokenizer, subject):
    made = editor_for(tokenizer, relation_gate=False)
    made.edit(Edit(f"Who is {subject}?", "Otto", subject=subject))
    assert edits_of(made, [f"Who is {subject}?", f"Tell me about {subject} then"]) == [0, 0]


def test_a_subject_without_letters_is_found_by_its_prompt(tokenizer):
    made = editor_for(tokenizer, relation_gate=False)
    with pytest.warns(UserWarning, match="has no letters"):
        made.edit(Edit("Who painted ♣♠?", "Otto", subject="♣♠"))
    assert edits_of(made, ["Who painted ♣♠?", "Who sold ♣♠?"]) == [0, None]


def test_tokens_are_spelled_in_bytes(tokenizer):
    spelling = spelling_of(tokenizer)
    for text in ["Zoë 東京", "the Silver Lake", "🙂"]:
        assert b"".join(spelling[token] for token in tokenizer(text)["input_ids"]) == text.encode()


def test_a_name_of_everyday_language_is_no_name():
    naming = Naming()
    assert naming.name("?!", 0) is None
    assert naming.name("Zembla", 0).is_near
    assert not naming.name("Oslo", 0).is_near
