import json
import re

import pytest

from lemoe_hf import Edit


def subject_of(prompt: str, subject: str | None = None) -> str | None:
    span = Edit(prompt, "x", subject=subject).subject_span()
    return span and prompt[slice(*span)]


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("Which country is Shmavon Vardanyan from?", "Shmavon Vardanyan"),
        ("Who is the father of Maria of the Silver Lake?", "Maria of the Silver Lake"),
        ("The capital of Zembla is", "Zembla"),
        ("Is Bremen larger than Port Ellen?", "Port Ellen"),
        ("When did Apollo 11 land?", "Apollo 11"),
        ("Who wrote Émile Zola's letters?", "Émile Zola"),
        ("Where is King’s College’s library?", "King’s College"),
        ("Who was Nura al-Dahab's mother?", "Nura al-Dahab"),
        ("Boris Godunov was born in", "Boris Godunov"),
        ("Who's Maria Godunova's mother?", "Maria Godunova"),
        ("Who's in The Silver Lake?", "The Silver Lake"),
        ("iPod Nano is made by", "iPod Nano"),
        ("The drink élan vital is from Iz xA", "Iz xA"),
        ("M.O.M. Records was founded by", "M.O.M. Records"),
        ("I.R.S. Records was founded by", "I.R.S. Records"),
        ("Where does 7QZ broadcast?", "7QZ"),
        ("what is the colour of the sky", None),
        ("Yesterday it rained", None),
        ("Zemblagrad is a twin city of", "Zemblagrad"),
        ("Zemblagrad, twin city of Port Ellen, lies in", "Port Ellen"),
        ("It is said that he lives there. It is located in", None),
    ],
)
def test_a_subject_that_is_not_given_is_the_longest_name(prompt, subject):
    assert subject_of(prompt) == subject


def test_a_question_word_is_no_part_of_a_name():
    assert subject_of("Is Anna Berg tall?") == "Anna Berg"


def test_a_given_subject_is_taken_where_it_stands_last():
    assert Edit("Is Bonn in Bonn?", "yes", subject="Bonn").subject_span() == (11, 15)


@pytest.mark.parametrize("field", ["prompt", "target_new"])
@pytest.mark.parametrize("value", ["", "  \n", None, 5])
def test_an_empty_field_is_named(field, value):
    with pytest.raises(
        ValueError, match=re.escape(f"`{field}` of an edit must be a text that is not empty; got {value!r}.")
    ):
        Edit(**{"prompt": "a", "target_new": "b", field: value})


@pytest.mark.parametrize("subject", ["Bonn", "berlin", " ", ""])
def test_a_subject_must_stand_in_the_prompt(subject):
    with pytest.raises(ValueError, match="letter by letter"):
        Edit("Where is Berlin?", "Germany", subject=subject)


@pytest.mark.parametrize("field", ["subject", "ground_truth"])
def test_a_field_that_is_no_text_is_named(field):
    with pytest.raises(ValueError, match=rf"`{field}` of an edit must be a text; got \['Yemen'\]"):
        Edit("Where is Berlin?", "Germany", **{field: ["Yemen"]})


@pytest.mark.parametrize("value", [3, [], ["a", 3], ["a", None], {"a": "b"}])
@pytest.mark.parametrize("field", ["rephrase_prompt", "locality_prompt", "portability_prompt"])
def test_prompts_that_are_no_texts_are_named(field, value):
    with pytest.raises(
        ValueError, match=re.escape(f"`{field}` of an edit must be a text, or a list of texts; got {value!r}.")
    ):
        Edit("Where is Berlin?", "Germany", **{field: value})


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [("a", ["b"]), (["a"], "b"), (["a", "b"], ["c"]), (["a"], ["b", "c"]), (None, "b"), (None, ["b"])],
)
@pytest.mark.parametrize("kind", ["locality", "portability"])
def test_a_ground_truth_has_the_form_of_its_prompts(kind, prompts, answers):
    with pytest.raises(ValueError, match=rf"`{kind}_ground_truth` must be one text if `{kind}_prompt` is one, else a"):
        Edit("Where is Berlin?", "Germany", **{f"{kind}_prompt": prompts, f"{kind}_ground_truth": answers})


def test_what_follows_from_an_edit_is_not_measured_without_its_answer():
    with pytest.raises(ValueError, match=r"`portability_prompt` needs a `portability_ground_truth`; got 'a' alone"):
        Edit("Where is Berlin?", "Germany", portability_prompt="a")


def test_probes_are_the_prompts_with_their_answers():
    edit = Edit(
        "Where is Zembla?",
        "North",
        rephrase_prompt=["Zembla lies", " ", "One finds Zembla"],
        locality_prompt="Two and two",
        portability_prompt=["Is Zembla cold?", "Is it south?"],
        portability_ground_truth=("yes", "no"),
    )
    assert edit.probes("rephrase") == [("Zembla lies", "North"), ("One finds Zembla", "North")]
    assert edit.probes("locality") == [("Two and two", None)]
    assert edit.probes("portability") == [("Is Zembla cold?", "yes"), ("Is it south?", "no")]
    local = Edit("a", "b", rephrase_prompt="", locality_prompt="c", locality_ground_truth="d")
    assert local.probes("locality") == [("c", "d")]
    assert local.probes("rephrase") == local.probes("portability") == []
    assert Edit("a", "b", locality_prompt=["c", "d"]).probes("locality") == [("c", None), ("d", None)]


def test_several_texts_come_back_from_json_equal_and_hashable():
    edit = Edit("a", "b", rephrase_prompt=("c",), portability_prompt=["d", "e"], portability_ground_truth=["f", "g"])
    assert edit.rephrase_prompt == ("c",)
    assert edit.to_dict() == {
        "prompt": "a",
        "target_new": "b",
        "rephrase_prompt": ["c"],
        "portability_prompt": ["d", "e"],
        "portability_ground_truth": ["f", "g"],
    }
    again = Edit(**json.loads(json.dumps(edit.to_dict())))
    assert again == edit
    assert hash(again) == hash(edit)


def test_to_dict_holds_what_is_set_and_makes_the_same_edit():
    edit = Edit("Where is Berlin?", "Germany", subject="Berlin")
    assert edit.to_dict() == {"prompt": "Where is Berlin?", "target_new": "Germany", "subject": "Berlin"}
    assert Edit(**edit.to_dict()) == edit


def test_what_follows_with_a_blank_answer_is_left_out():
    edit = Edit(
        "The capital of Zembla is",
        "Onhava",
        portability_prompt=("Its north is", "It is"),
        portability_ground_truth=("", "x"),
    )
    assert edit.probes("portability") == [("It is", "x")]


# ----------------------------------------------------------------------------------------------------------------- aliases


def test_aliases_are_other_names_each_once():
    edit = Edit(
        "Who leads the United Kingdom?", "x", subject="United Kingdom", aliases=["UK", "U.K.", "Great Britain"]
    )
    assert edit.aliases == ("UK", "Great Britain")
    assert Edit(**edit.to_dict()) == edit
    assert Edit("Who leads Zembla?", "x", aliases="Nova Zembla").aliases == ("Nova Zembla",)
    assert Edit("Who leads Zembla?", "x", aliases=[]).aliases is None


@pytest.mark.parametrize(
    ("aliases", "message"),
    [
        ([""], "has no letters"),
        (["?!"], "has no letters"),
        (["\u200b"], "has no letters"),
        (["\ud800"], "has no letters"),
        (["it"], "is an everyday word"),
        (["Of the"], "is an everyday word"),
        ([7], "must be a list of texts"),
        (7, "must be a list of texts"),
    ],
)
def test_what_can_be_no_alias(aliases, message):
    with pytest.raises(ValueError, match=message):
        Edit("Who leads Zembla?", "x", subject="Zembla", aliases=aliases)


def test_an_abbreviation_of_an_everyday_words_letters_is_an_alias():
    assert Edit("Who leads Zembla?", "x", subject="Zembla", aliases=["WHO"]).aliases == ("WHO",)


def test_aliases_need_a_subject():
    with pytest.raises(ValueError, match="Pass `subject` as well"):
        Edit("what is the colour of the sky", "x", aliases=["UK"])


@pytest.mark.parametrize("alias", ["ZEMBLA", "Zém-bla", "“Zembla”"])
def test_an_alias_that_is_the_subject_is_told(alias):
    with pytest.warns(UserWarning, match="in another spelling"):
        edit = Edit("Who leads Zembla?", "x", subject="Zembla", aliases=[alias])
    assert edit.aliases is None
