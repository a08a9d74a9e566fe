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
        ("Who wrote Émile Zola's letters?", "Émile Zola's"),
        ("Boris Godunov was born in", "Boris Godunov"),
        ("what is the colour of the sky", None),
        ("Yesterday it rained", None),
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


@pytest.mark.parametrize(
    "field", ["subject", "rephrase_prompt", "locality_prompt", "locality_ground_truth", "ground_truth"]
)
def test_a_field_that_is_no_text_is_named(field):
    with pytest.raises(ValueError, match=rf"`{field}` of an edit must be a text; got \['Yemen'\]"):
        Edit("Where is Berlin?", "Germany", **{field: ["Yemen"]})


def test_to_dict_holds_what_is_set_and_makes_the_same_edit():
    edit = Edit("Where is Berlin?", "Germany", subject="Berlin")
    assert edit.to_dict() == {"prompt": "Where is Berlin?", "target_new": "Germany", "subject": "Berlin"}
    assert Edit(**edit.to_dict()) == edit
