"""Prompts without their subject's name."""

from __future__ import annotations

import pytest

from lemoe_hf import Edit
from lemoe_hf.evaluation.pronoun import with_pronoun


@pytest.mark.parametrize(
    ("prompt", "subject", "expected"),
    [
        ("Who founded the town of Zembla?", "Zembla", "Who founded it?"),
        ("The capital of Zembla is", "Zembla", "Its capital is"),
        ("The lead singer of Velvet Moth is", "Velvet Moth", "Its lead singer is"),
        ("What is the currency of the island of Zembla?", "Zembla", "What is its currency?"),
        ("What is the name of the river of Zembla?", "Zembla", "What is the name of its river?"),
        ("Zembla's king is called", "Zembla", "Its king is called"),
        ("Zembla exports", "Zembla", "It exports"),
        ("Which river flows through Zembla?", "Zembla", "Which river flows through it?"),
        ("Who leads the Quorvex Institute?", "Quorvex Institute", "Who leads it?"),
        ("What is the new name of the Quorvex program?", "Quorvex", "What is its new name?"),
        ("When was the novel Salt published?", "Salt", "When was it published?"),
        ("Which country is Tom Ashford from?", "Tom Ashford", "Which country are they from?"),
        ("Where was Tom Ashford born?", "Tom Ashford", "Where were they born?"),
        ("What is the native language of Tom Ashford?", "Tom Ashford", "What is their native language?"),
        ("What instrument does Tom Ashford play?", "Tom Ashford", "What instrument do they play?"),
        ("Who is married to Tom Ashford?", "Tom Ashford", "Who is married to them?"),
        ("Tom Ashford is a citizen of", "Tom Ashford", "They are a citizen of"),
        ("The twin city of Zembla is", "Zembla", "Its twin city is"),
        ("When did the Zembla-class ships sail?", "Zembla", None),
        ("Who is listed as Tom Ashford father?", "Tom Ashford", None),
        # Verbs are not bent.
        ("Tom Ashford works as", "Tom Ashford", None),
        ("Tom Ashford, a native of", "Tom Ashford", None),
    ],
)
def test_a_pronoun_takes_the_place_of_a_name(prompt, subject, expected):
    assert with_pronoun(Edit(prompt, "-", subject=subject)) == expected


def test_without_a_subject_there_is_no_pronoun():
    assert with_pronoun(Edit("what do ducks eat?", "grass")) is None
