"""Which names a text holds: in whatever spelling, with a letter wrong, and not where a longer name is another."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from anchored import bank, prompt
from lemoe_hf.data.edit import Edit
from lemoe_hf.editing.spelling import Naming
from lemoe_hf.routing.name_index import Name
from lemoe_hf.routing.names import Names
from lemoe_hf.routing.router import Asking, Router
from lemoe_hf.routing.targets import Targets
from lemoe_hf.routing.text import Text
from lemoe_hf.routing.vocabulary import MARK, SPECIAL, STOP, WORD, Vocabulary


# A token for every byte, a token of the tokenizer's own, and some words.
OWN, WORDS = (
    256,
    [" who", " is", " new", " mexican", " the", " pairs", " air", " port", " United", " Mex", "ico", "ell", "’s"],
)
TOKENS = [bytes([byte]) for byte in range(256)] + [b"<own>"] + [word.encode() for word in WORDS]


def byte_vocabulary() -> Vocabulary:
    vocabulary = Vocabulary()
    kinds = [
        (MARK | STOP) * (token == b"?") | STOP * (token in (b".", b"!", b"\n")) | WORD * token[-1:].isalnum()
        for token in TOKENS
    ]
    kinds[OWN] = SPECIAL | STOP
    vocabulary.kinds = torch.tensor(kinds, dtype=torch.int16)
    vocabulary.spelling = torch.tensor(list(b"".join(TOKENS)), dtype=torch.uint8)
    vocabulary.spelling_lengths = torch.tensor([len(token) for token in TOKENS], dtype=torch.int16)
    return vocabulary


VOCABULARY, NAMING = byte_vocabulary(), Naming()


def ids_of(text: str) -> list[int]:
    return list(text.encode())


def router_of(*edits: Edit, near: bool = True, threshold: float | None = None) -> Router:
    names = Names()
    for i, edit in enumerate(edits):
        names.add(NAMING.names(edit, i))
    anchors = bank(*(prompt(ids_of(edit.prompt), i) for i, edit in enumerate(edits)))
    return Router(anchors, Targets(), VOCABULARY, None, threshold, None, names, near)


def found(router: Router, text: str | list[int], cuts: tuple[int, ...] = (), kind: str = "end") -> list[int]:
    """The edits that a text may ask for at its end, read in passes that end at the cuts."""
    ids = ids_of(text) if isinstance(text, str) else text
    read = Text(prompt=len(ids) if kind == "end" else None)
    for first, last in pairwise([0, *cuts, len(ids)]):
        read.read(ids[first:last], range(first, last), VOCABULARY)
        if last == len(ids) and kind == "end":
            read.ends.add(last - 1)
        asking = Asking(read, first)
        router.questions([asking])
    questions = [question for question in asking.questions if question.column == len(ids) - 1]
    return [
        edit
        for question in questions
        for edit in ([question.own.edit] if question.own else [option.edit for option in question.options])
    ]


COUNTRY = Edit("Who leads the United Kingdom?", "x", subject="United Kingdom", aliases=["UK", "Great Britain"])
PERSON = Edit("Where was Jean-Luc Ferrandière born?", "x", subject="Jean-Luc Ferrandière")
MEXICO = Edit("Who leads Mexico?", "x", subject="Mexico")
ROUTER = router_of(COUNTRY, PERSON, MEXICO)

WRITINGS = {
    "upper case": "OF JEAN-LUC FERRANDIÈRE",
    "lower case": "of jean-luc ferrandière",
    "no accent": "of Jean-Luc Ferrandiere",
    "decomposed": "of Jean-Luc Ferrandie\u0300re",
    "a space for the hyphen": "of Jean Luc Ferrandière",
    "another hyphen": "of Jean\u2011Luc Ferrandière",
    "double spaces": "of  Jean-Luc  Ferrandière",
    "a non-breaking space": "of Jean-Luc\u00a0Ferrandière",
    "a newline": "of Jean-Luc\nFerrandière",
    "full width": "of Ｊｅａｎ-Ｌｕｃ Ｆｅｒｒａｎｄｉｅｒｅ",
    "zero width": "of Jean\u200b-Luc Ferrand\u200bière",
    "curly quotes": "of “Jean-Luc Ferrandière”",
    "straight quotes": 'of "Jean-Luc Ferrandière"',
    "possessive": "of Jean-Luc Ferrandière's house",
    "curly possessive": "of Jean-Luc Ferrandière’s house",
    "plural": "of Jean-Luc Ferrandières",
    "elision": "d’Jean-Luc Ferrandière",
    "bold": "of **Jean-Luc** Ferrandière",
    "with a comma": "of Jean-Luc Ferrandière, then",
    "a hyphen within a word": "of Jean-Luc Ferran-dière",
    "a headline": "Birthplace Of Jean-Luc Ferrandière Known",
    "shouting": "BIRTHPLACE OF JEAN-LUC FERRANDIÈRE TODAY",
    "behind a title": "where is Mr. Jean-Luc Ferrandière",
    "one letter missing": "of Jean-Luc Ferandière",
    "one letter too many": "of Jean-Luc Ferrrandière",
    "one letter wrong": "of Jean-Luc Ferrandoère",
    "two letters swapped": "of Jean-Luc Ferrnadière",
}


@pytest.mark.parametrize("text", WRITINGS.values(), ids=WRITINGS)
def test_a_name_is_found_however_it_is_written(text):
    assert found(ROUTER, text) == [1]


@pytest.mark.parametrize(
    "text", ["of the UK", "of Great Britain", "of great-britain’s", "of Graet Britain", "the U.K. of"]
)
def test_an_alias_finds_the_edit(text):
    assert found(ROUTER, text) == [0]


OTHERS = {
    "before": "who leads New Mexico",
    "before, lower case": "who leads new mexico",
    "before, at the beginning": "North Mexico is",
    "behind": "who leads Mexico City",
    "a hyphen behind": "who leads Mexico-Dubois",
    "a hyphen before": "who leads Neo-Mexico",
    "another first name": "where was Pierre Mexico born",
    "within a word": "of Mexicola",
    "within a word, before": "of MyMexico",
    "an everyday word": "of Mexican",
    "two letters wrong": "of Mxeioc",
    "a number more": "of Mexico9",
    "over a token of its own": [*ids_of("of Mex"), OWN, *ids_of("ico")],
    "not at all": "of Rome",
}


@pytest.mark.parametrize("text", OTHERS.values(), ids=OTHERS)
def test_what_is_another_name(text):
    assert found(ROUTER, text) == []


def test_a_name_may_go_on_as_it_does_in_the_own_prompt():
    router = router_of(Edit("Who leads North Mexico City?", "x", subject="Mexico"))
    assert found(router, "of Mexico City") == found(router, "of North Mexico") == [0]


def test_an_alias_that_is_a_part_of_the_subject_does_not_go_on_as_that_does():
    router = router_of(
        Edit("Who makes the Velofox 9 Cargo?", "x", subject="Velofox 9 Cargo", aliases=["Velofox", "Cargo"])
    )
    assert found(router, "of the Velofox") == found(router, "of the Velofox 9 Cargo") == [0]
    for text in ("of the Velofox 8", "of the Velofox Ten", "of the Velofox 9 Cargo Trailer", "of my Fox Cargo"):
        assert found(router, text) == [], text


@pytest.mark.parametrize(
    ("text", "edits"), [("of Mexico9", []), ("of Velofox 90", []), ("of Velofx 9", [0]), ("of Velofox 8", [])]
)
def test_a_digit_is_no_typo(text, edits):
    assert found(router_of(Edit("Who makes the Velofox 9?", "x", subject="Velofox 9")), text) == edits


def test_a_short_name_is_found_exactly():
    router = router_of(Edit("Who leads Oslo?", "x", subject="Oslo"))
    assert (found(router, "of Oslo"), found(router, "of Olso")) == ([0], [])


def test_without_near_names_a_letter_counts():
    assert found(router_of(PERSON, near=False), "of Jean-Luc Ferandière") == []
    assert found(router_of(PERSON, threshold=0.99), "of Jean-Luc Ferandière") == []
    assert found(router_of(PERSON, threshold=0.9), "of Jean-Luc Ferandière") == [0]


def test_a_name_with_a_letter_wrong_may_be_another_edits():
    router = router_of(
        Edit("Who is Anna Bergland?", "x", subject="Anna Bergland"),
        Edit("Who is Anna Borgland?", "x", subject="Anna Borgland"),
    )
    assert (found(router, "is Anna Bergland"), found(router, "is Anna Borgland")) == ([0], [1])
    assert found(router, "is Anna Burgland") == []
    assert found(router, "is Anna Berglnd") == [0]


def test_everyday_language_is_a_name_in_its_own_capitals_only():
    name = NAMING.name("WHO", 0)
    assert name == Name(0, "WHO", is_cased=True)
    router = router_of(
        Edit("Who leads the World Health Organization?", "x", subject="World Health Organization", aliases=["WHO"])
    )
    assert (found(router, "head of the WHO"), found(router, "and who"), found(router, "and Who")) == ([0], [], [])


def test_letters_of_everyday_words_are_no_name():
    router = router_of(Edit("Where is Newmexican?", "x", subject="Newmexican"))
    texts = ["a new mexican", "a new-mexican", "a newmexican"]
    assert [found(router, text) for text in texts] == [[], [0], [0]]


# ------------------------------------------------------------------------------------------------------------ whole prompts


@pytest.mark.parametrize(
    "text",
    [
        "WHO LEADS THE UNITED KINGDOM",
        "who  leads the “United\nKingdom”?",
        "Hello. Who leads the United Kingdom ?",
        "Ｗｈｏ leads the united-kingdom",
    ],
)
def test_an_own_prompt_is_one_however_it_is_written(text):
    router = router_of(COUNTRY)
    read = Text(prompt=len(ids_of(text)), ends={len(ids_of(text)) - 1})
    read.read(ids_of(text), range(len(ids_of(text))), VOCABULARY)
    asking = Asking(read, 0)
    router.questions([asking])
    assert asking.questions[-1].own.edit == 0


def test_an_own_prompt_that_begins_with_the_end_of_another_name_is_none():
    router = router_of(Edit("Zembla lies in", "x", subject="Zembla"))
    for text in ("Zembla lies in", "And Zembla lies in", "All right. Zembla lies in", "ZEMBLA LIES IN"):
        assert found(router, text) == [0], text
    for text in ("North Zembla lies in", "now Nova Zembla lies in", "now NOVA-ZEMBLA lies in"):
        assert found(router, text) == [], text


def test_a_later_edit_takes_no_own_prompt_that_is_written_as_it_is():
    router = router_of(Edit("Who is Pena?", "x", subject="Pena"), Edit("Who is Peña?", "y", subject="Peña"))
    assert (found(router, "Who is Pena?"), found(router, "Who is Peña?"), found(router, "WHO IS PENA?")) == (
        [0],
        [1],
        [1],
    )


# ------------------------------------------------------------------------------------------------- a function of the text


TEXTS = [
    "Who leads the United Kingdom’s House?",
    "new Mexico, Mexico. Mexicola",
    "d’Jean-Luc Ferandière é 東京 UK",
    "MEXICO",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["end", "guess"])
def test_what_is_found_depends_on_the_tokens_up_to_a_column_alone(text, kind):
    """In whatever passes they come, and whatever stands behind."""
    ids = ids_of(text)
    whole = Text()
    whole.read(ids, range(len(ids)), VOCABULARY)
    asking = Asking(whole, 0)
    ROUTER.questions([asking])
    of_column = {each.column: [option.edit for option in each.options] for each in asking.questions}
    step = Text()
    for column, token in enumerate(ids):
        step.read([token], [column], VOCABULARY)
        one = Asking(step, column)
        ROUTER.questions([one])
        assert [[option.edit for option in each.options] for each in one.questions] == [
            options for at, options in of_column.items() if at == column
        ]
        if kind == "end":
            assert found(ROUTER, ids[: column + 1]) == found(
                ROUTER, ids[: column + 1], cuts=tuple(range(1, column + 1))
            )


def test_a_text_that_was_cut_goes_on_as_a_new_one():
    ids, text = ids_of("of Mexico or not"), Text(prompt=100)
    text.read(ids, range(len(ids)), VOCABULARY)
    ROUTER._search([text])
    text.cut(6)
    text.read(ids_of("ican"), range(6, 10), VOCABULARY)
    ROUTER._search([text])
    assert text.spelled.key == "ofmexican"
    assert found(ROUTER, text.ids) == []


def test_a_text_that_is_known_is_searched_again_when_names_have_changed():
    router = router_of(MEXICO)
    text, ids = Text(prompt=100), ids_of("of Mexico and Rome")
    text.read(ids, range(len(ids)), VOCABULARY)
    router._search([text])
    assert {match.name for match in text.found} == {"Mexico"}
    router.names.add([Name(0, "Rome")])
    text.read(ids_of("!"), [len(ids)], VOCABULARY)
    router._search([text])
    assert {match.name for match in text.found} == {"Mexico", "Rome"}


def test_only_what_is_new_is_searched(monkeypatch):
    router, text, ids = router_of(MEXICO), Text(), ids_of("of Mexico " * 30)
    text.read(ids, range(len(ids)), VOCABULARY)
    router._search([text])
    looked_up = []
    real = Names.exactly
    monkeypatch.setattr(Names, "exactly", lambda self, key: looked_up.append(key) or real(self, key))
    text.read(ids_of("Mexico"), range(len(ids), len(ids) + 6), VOCABULARY)
    router._search([text])
    assert 0 < len(looked_up) < 20
    assert sum(match.score == 1 for match in text.found) == 31
