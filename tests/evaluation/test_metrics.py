import math

import pytest
import torch

from lemoe_hf.evaluation.metrics import (
    agreement,
    equals,
    kl_divergence,
    mean,
    means,
    perplexity,
    retention,
    starts_with,
    token_accuracy,
)


def test_token_accuracy_counts_tokens():
    assert token_accuracy([5, 1, 1], [5, 6, 7]) == pytest.approx(1 / 3)
    assert token_accuracy([5, 6, 7], [5, 6, 7]) == 1.0
    assert token_accuracy([6, 7, 5], [5, 6, 7]) == 0.0


def test_token_accuracy_needs_as_many_predictions_as_targets():
    with pytest.raises(ValueError, match="without tokens"):
        token_accuracy([], [])
    with pytest.raises(ValueError, match="longer"):
        token_accuracy([5], [5, 6])


@pytest.mark.parametrize(
    ("answer", "target", "begins", "same"),
    [
        (" Yemen, of course", "yemen", True, False),
        ("YEMEN\n", " Yemen", True, True),
        ("The Yemen", "Yemen", False, False),
        ("", "Yemen", False, False),
        ("Yeme", "Yemen", False, False),
    ],
)
def test_free_answers(answer, target, begins, same):
    assert starts_with(answer, target) is begins
    assert equals(answer, target) is same


def test_one_of_three_tokens_is_a_third_teacher_forced_and_nothing_in_free_generation():
    assert token_accuracy([1, 9, 9], [1, 2, 3]) == pytest.approx(1 / 3)
    assert not starts_with("a x y", "a b c")


def test_kl_divergence():
    base = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    edited = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    by_hand = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    assert kl_divergence(base, edited) == pytest.approx(by_hand, abs=1e-6)
    assert kl_divergence(base, base + 7) == pytest.approx(0.0, abs=1e-6)


def test_mean():
    assert mean([1.0, 0.0, 0.5]) == 0.5


def test_perplexity_is_that_of_the_target():
    # Two tokens of probability 1/2 and 1/8: the mean surprise is 2 bits.
    logits = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5]]).log()
    assert perplexity(logits, [0, 0]) == pytest.approx(4.0)


def test_agreement_is_the_share_of_the_first_tokens_place_by_place():
    assert agreement([1, 2, 3, 4], [1, 9, 3, 9]) == 0.5
    assert agreement([2, 1], [1, 2]) == 0.0
    assert agreement([1, 2], [1, 2]) == 1.0


def test_agreement_looks_at_the_first_ten_tokens():
    assert agreement([*range(10), 77], [*range(10), 88]) == 1.0
    assert agreement(list(range(12)), [*range(9), 99, 99, 99]) == 0.9
    assert agreement([1, 2, 3], [1, 2, 9], first=2) == 1.0


def test_an_answer_that_ends_earlier_agrees_in_what_it_has():
    assert agreement([1, 2], [1, 2, 3, 4]) == agreement([1, 2, 3, 4], [1, 2]) == 0.5
    assert agreement([], [1]) == agreement([1], []) == 0.0
    assert agreement([], []) == 1.0


def test_retention_is_what_has_changed_since():
    assert retention([1.0, 0.5, 0.0], [1.0, 0.5, 0.0]) == 0.0
    assert retention([1.0, 1.0], [1.0, 0.5]) == -0.25
    assert retention([0.0], [1.0]) == 1.0


def test_retention_compares_the_same_edits():
    with pytest.raises(ValueError, match="got 2 before and 1 after"):
        retention([1.0, 1.0], [1.0])


def test_means_are_over_those_that_have_a_score():
    scores = [{"a": 1.0}, {"a": 0.0, "b": 0.25}, {}, {"a": 0.5, "b": 0.75}]
    assert means(scores) == {"a": 0.5, "b": 0.5}
    assert list(means(scores)) == ["a", "b"]
    assert means([]) == means([{}]) == {}
