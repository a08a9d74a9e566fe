import math

import pytest
import torch

from lemoe_hf.evaluation.metrics import equals, kl_divergence, mean, perplexity, starts_with, token_accuracy


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
