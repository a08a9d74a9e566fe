"""PEFT knows the method, whoever asks and however often the package is imported."""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from torch import nn

import lemoe_hf
from lemoe_hf import LEMoEConfig, LEMoEModel
from lemoe_hf.editing.push import push_model
from lemoe_hf.registration import add_peft_type, register


def test_the_method_stands_in_the_tables_of_peft():
    assert PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.LEMOE] is LEMoEConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LEMOE] is LEMoEModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[PeftType.LEMOE] == "lemoe_"


def test_the_type_is_a_member_like_any_other():
    member = PeftType("LEMOE")
    assert member is PeftType.LEMOE is PeftType["LEMOE"]
    assert member in list(PeftType)
    assert member in PeftType
    assert (member.name, member.value) == ("LEMOE", "LEMOE")
    assert member == "LEMOE"
    assert hash(member) == hash("LEMOE")
    assert len(list(PeftType)) == len(set(PeftType)) == len(PeftType.__members__)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_the_type_survives_copies(protocol):
    assert pickle.loads(pickle.dumps(PeftType.LEMOE, protocol)) is PeftType.LEMOE
    assert copy.deepcopy(PeftType.LEMOE) is PeftType.LEMOE


def test_a_second_registration_changes_nothing():
    before = list(PeftType)
    assert add_peft_type("LEMOE") is PeftType.LEMOE
    register("lemoe", LEMoEConfig, LEMoEModel, push_model)
    importlib.reload(lemoe_hf)
    assert list(PeftType) == before
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.LEMOE] is LEMoEModel


def test_a_name_that_another_package_took_is_refused():
    class LEMoEModelOfOthers(nn.Module):
        prefix = "lemoe_"

    with pytest.raises(RuntimeError, match="PEFT already has a method called 'LEMOE'"):
        register("lemoe", LEMoEConfig, LEMoEModelOfOthers, push_model)
