from __future__ import annotations

import pytest
import torch
from lemoe_hf.routing.route import Candidates, Route


class Scored:
    """Stands for the relations: what two edits of one subject score at the last of two columns."""

    def __init__(self, *scores: float):
        self.scores = torch.tensor(scores).reshape(1, 2, 1)

    def project(self, features: torch.Tensor, first: int) -> torch.Tensor:
        assert first == 3
        return features

    def score(self, keys: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        return self.scores


@pytest.mark.parametrize(
    ("scores", "expert"),
    [
        ((3.0, 4.9), 5),  # too close to tell: the one whose wording is more alike, which stands first
        ((3.0, 5.1), 7),
        ((4.9, 3.0), 5),
        ((0.5, 1.5), 7),  # the first is below its threshold, however close
        ((0.5, 0.9), None),
    ],
)
def test_of_edits_that_score_nearly_alike_the_likelier_wording_is_taken(scores, expert):
    waiting = torch.tensor([[Route.ENDLESS]])
    candidates = Candidates(
        edits=torch.tensor([[[0, 1]]]),
        experts=torch.tensor([[[5, 7]]]),
        keys=torch.zeros(1, 1, 2, 4),
        threshold=torch.ones(1, 1, 2),
        score=torch.full((1, 1, 2), -torch.inf),
        named_at=torch.zeros(1, 1),
        columns=torch.tensor([1]),
        asked=torch.tensor([[[True]]]),
        words=torch.zeros(1, 1, 1, 4),
        num_words=3,
        hidden=[torch.ones(1, 2, 4)],
    )
    route = Route(
        torch.zeros_like(waiting), torch.ones(1, 1), waiting.clone(), waiting, last_start=1, candidates=candidates
    )
    route.seal()
    route.decide(candidates, Scored(*scores))
    if expert is None:
        assert not route.final.gates.any()
    else:
        assert (int(route.final.experts), int(route.start), float(route.final.gates)) == (expert, 1, 1.0)
    assert candidates.score.flatten().tolist() == pytest.approx(scores)
