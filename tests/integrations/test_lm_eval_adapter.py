"""lm-eval's `--model hf --model_args pretrained=BASE,peft=ADAPTER`, which is `HFLM(pretrained=..., peft=...)`."""

from __future__ import annotations

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from facts import FACTS, UNRELATED


def scores(lm: HFLM, pairs: list[tuple[str, str]]) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    return lm.loglikelihood(requests, disable_tqdm=True)


@pytest.fixture(scope="module")
def base(base_folder) -> HFLM:
    return HFLM(pretrained=str(base_folder), device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def edited(base_folder, adapter_folder) -> HFLM:
    return HFLM(pretrained=str(base_folder), peft=str(adapter_folder), device="cpu", batch_size=2)


def test_edits_are_the_greedy_answers_of_the_adapter_alone(base, edited):
    pairs = [(fact.prompt, f" {fact.target_new}") for fact in FACTS[:2]]
    assert [is_greedy for _, is_greedy in scores(edited, pairs)] == [True, True]
    assert [is_greedy for _, is_greedy in scores(base, pairs)] == [False, False]


def test_other_log_likelihoods_are_the_base_models(base, edited):
    pairs = [(text, " a blue door") for text in UNRELATED]
    assert scores(edited, pairs) == scores(base, pairs)
