"""The store of names: it grows, forgets, is shared by versions, and is checked."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lemoe_hf.routing.name_index import Name
from lemoe_hf.routing.names import Names
from lemoe_hf.routing.together import check_sizes
from lemoe_hf.routing.versions import copied
from lemoe_hf.tuners.schema import SCHEMA, check_tensor


BERG, OSLO, CALL = Name(0, "Anna Berg", is_near=True), Name(1, "Oslo"), Name(0, "Who is Anna Berg", is_prompt=True)
ALL = [BERG, OSLO, CALL]


def store(*names: Name) -> Names:
    made = Names()
    made.add(list(names))
    return made


def test_names_are_found_by_their_letters():
    names = store(*ALL)
    assert names.exactly("annaberg") == [BERG]
    assert names.exactly("whoisannaberg") == []
    assert names.prompts_of_letters("whoisannaberg") == [CALL]
    assert names.of(0) == [BERG, CALL]
    assert list(names) == ALL
    assert len(names) == 3


@pytest.mark.parametrize(
    "wrong", ["anaberg", "annnaberg", "annaborg", "annabreg", "nnaberg", "annaber", "annabergs", "anbnaerg"]
)
def test_letters_with_one_wrong_are_looked_up(wrong):
    assert BERG in store(*ALL).perhaps(wrong) or wrong == "anbnaerg"


def test_every_letter_may_be_the_wrong_one():
    key, names = BERG.key, store(*ALL)
    for i in range(len(key)):
        for other in (key[:i] + key[i + 1 :], key[:i] + "x" + key[i + 1 :], key[:i] + "x" + key[i:]):
            assert names.perhaps(other) == [BERG], other
        if i + 1 < len(key):
            assert names.perhaps(key[:i] + key[i + 1] + key[i] + key[i + 2 :]) == [BERG]


def test_a_name_that_is_found_exactly_only_is_not():
    assert store(OSLO).perhaps("oslo") == store(OSLO).perhaps("olso") == []


def test_a_copy_that_has_grown_leaves_the_other_as_it_was():
    names = store(BERG)
    assert names.exactly("oslo") == []
    grown = copied(names)
    grown.add([OSLO])
    assert (names.exactly("oslo"), grown.exactly("oslo")) == ([], [OSLO])
    assert grown.index is names.index
    assert grown.version != names.version


def test_two_copies_that_have_grown_apart():
    names = store(BERG)
    names.exactly("")
    one, two = copied(names), copied(names)
    one.add([OSLO])
    other = Name(1, "Rome")
    two.add([other])
    assert (one.exactly("oslo"), one.exactly("rome")) == ([OSLO], [])
    assert (two.exactly("oslo"), two.exactly("rome")) == ([], [other])


def test_a_copy_that_forgets_leaves_the_other_as_it_was():
    names = store(*ALL)
    assert names.exactly("annaberg")
    fewer = copied(names)
    fewer.remove(0)
    assert (list(fewer), fewer.exactly("annaberg"), fewer.of(0)) == ([OSLO], [], [])
    assert names.exactly("annaberg") == [BERG]
    fewer.add([BERG])
    assert fewer.exactly("annaberg") == [BERG]
    assert list(fewer) == [OSLO, BERG]
    assert names.exactly("annaberg") == [BERG]


def test_after_much_is_forgotten_the_index_begins_anew():
    names = store(*(Name(i, f"name {chr(97 + i)}") for i in range(6)))
    names.exactly("")
    for edit in range(5):
        names.remove(edit)
        assert [name.edit for name in names] == list(range(edit + 1, 6))
        for i in range(6):
            assert len(names.exactly(f"name{chr(97 + i)}")) == (i > edit)


@pytest.mark.parametrize("how", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_find_the_same(how):
    names = store(*ALL)
    names.remove(1)
    names.exactly("")
    other = how(names)
    assert (list(other), other.exactly("annaberg"), other.exactly("oslo")) == ([BERG, CALL], [BERG], [])
    other.add([OSLO])
    assert (other.exactly("oslo"), names.exactly("oslo")) == ([OSLO], [])


def test_what_is_saved_is_what_was_stored():
    names = store(*ALL, Name(3, "𝔛 東京", is_cased=True))
    other = Names(len(names), len(names.letters))
    other.load_state_dict(names.state_dict())
    assert list(other) == list(names)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lengths", [9, 4, 17], "its lengths tell of"),
        ("lengths", [-1, 14, 16], "numbers from -1"),
        ("edit", [0], "unequal lengths"),
        ("letters", [-5] * 29, "numbers from -5"),
    ],
)
def test_damaged_names_are_an_error(name, value, message):
    def check(state: dict[str, torch.Tensor]) -> None:
        for key, tensor in state.items():
            check_tensor(key, tensor, SCHEMA[key])
        check_sizes("", state)

    state = {f"names.{key}": tensor.clone() for key, tensor in store(*ALL).state_dict().items()}
    check(state)
    key = f"names.{name}"
    with pytest.raises(ValueError, match=message):
        check(state | {key: torch.tensor(value, dtype=state[key].dtype)})
