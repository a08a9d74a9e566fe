"""What tokens are."""

from __future__ import annotations

import copy

import pytest
import torch

from gated import gated, relations_of
from lemoe_hf.routing.vocabulary import CONTINUES, MARK, STOP, WORD, Vocabulary, kinds_from_lists
from worded import vocabulary_of


def test_a_token_is_what_its_kind_says_and_others_are_nothing_in_particular():
    vocabulary = vocabulary_of(marks=(20,), stops=(21,))
    assert [vocabulary.kind(token) for token in (9, 10, 20, 21)] == [0, WORD, MARK | STOP, STOP]
    assert [vocabulary.kind(token) for token in (-1, -2, 320, 10**6)] == [0] * 4
    assert vocabulary.is_known
    assert not Vocabulary().is_known
    assert Vocabulary().kind(5) == 0


def test_the_table_is_of_the_kinds_there_are_now():
    """Not of those before it was learned, loaded or moved."""
    vocabulary, other = Vocabulary(), vocabulary_of(marks=(20,), reply=(5, 6))
    assert (vocabulary.table, vocabulary.reply_tokens) == ((), ())
    vocabulary.kinds, vocabulary.reply = other.kinds.clone(), other.reply.clone()
    assert vocabulary.table == tuple(other.kinds.tolist())
    assert vocabulary.reply_tokens == (5, 6)
    vocabulary.load_state_dict(vocabulary_of(stops=(20,), reply=(7, 8)).state_dict())
    assert vocabulary.kind(20) == STOP
    assert vocabulary.reply_tokens == (7, 8)
    vocabulary.kinds.fill_(WORD)
    assert vocabulary.to("cpu").kind(20) == WORD


@pytest.mark.parametrize("cast", ["half", "double", "bfloat16"])
def test_kinds_stay_whole_numbers_whatever_a_model_is_cast_to(cast):
    vocabulary = vocabulary_of(marks=(20,), reply=(300, 301))
    copied = copy.deepcopy(vocabulary)
    getattr(vocabulary, cast)()
    assert (vocabulary.kinds.dtype, vocabulary.reply.dtype) == (torch.int16, torch.int32)
    assert torch.equal(vocabulary.kinds, copied.kinds)
    assert torch.equal(vocabulary.reply, copied.reply)


def test_kinds_of_an_adapter_that_kept_lists():
    kinds = kinds_from_lists(torch.tensor([4]), torch.tensor([4, 7]), torch.tensor([2, 9]))
    assert kinds.tolist() == [
        WORD,
        WORD,
        WORD | CONTINUES,
        WORD,
        MARK | STOP,
        WORD,
        WORD,
        STOP,
        WORD,
        WORD | CONTINUES,
    ]
    assert kinds_from_lists(torch.tensor([]), torch.tensor([1]), torch.tensor([])).tolist() == [WORD, STOP]


def test_an_adapter_that_kept_lists_is_given_its_vocabulary_once():
    model = gated()
    layer, relations = model.base_model.layers_of()[0], relations_of(model)
    layer.lemoe_vocabulary["default"].kinds = torch.zeros(0, dtype=torch.uint8)
    assert not layer.vocabulary("default").is_known
    relations.marks, relations.stops = torch.tensor([20]), torch.tensor([20, 21])
    known = layer.vocabulary("default")
    assert known is layer.lemoe_vocabulary["default"]
    assert [known.kind(token) for token in (19, 20, 21, 22)] == [WORD, MARK | STOP, STOP, 0]
    assert model.peft_config["default"].num_token_kinds == len(known.kinds) == 22
    kinds = known.kinds
    relations.stops = torch.tensor([20, 21, 30])
    assert layer.vocabulary("default").kinds is kinds
