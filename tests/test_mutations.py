"""However a stored adapter is damaged: an error that names the damage, or the same answers, and nothing else."""

from __future__ import annotations

import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from test_project import ROOT


@pytest.fixture(scope="module")
def mutations():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        yield importlib.import_module("mutations")


@pytest.fixture(scope="module")
def whole(mutations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    mutations.made(folder)
    return folder, mutations.used(mutations.by_peft, folder)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_a_damaged_adapter_is_refused_or_answers_the_same(mutations, whole, seed):
    folder, expected = whole
    kind, found, told = mutations.tried(seed, folder, folder.with_name("damaged"), expected)
    right = {"error that names the damage", "the same answers"}
    if kind.startswith("config"):
        right |= {"another setting", "error of PEFT's"}
    if kind.endswith("unsealed"):
        right |= {"another adapter, whole"}
    assert found in right, (kind, found, told)


def test_damage_is_noticed_by_this_test(mutations, whole, monkeypatch):
    """Without the checks many of the same adapters would answer something else, or break."""
    folder, expected = whole
    monkeypatch.setattr("lemoe_hf.tuners.loaded.check", lambda method, layers: b"")
    found = [mutations.tried(seed, folder, folder.with_name("damaged"), expected)[1] for seed in range(60)]
    assert {"raw error", "other answers"} & set(found)
    assert torch.equal(mutations.used(mutations.by_peft, folder)[0], expected[0])
