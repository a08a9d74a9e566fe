"""A forward pass in which all edits share one mixture of experts: where it acts, and on texts about what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch

from .entities import of_decision
from .passes import Pass, Places


# Gives the mean input embeddings of tuples of tokens.
Embed = Callable[[Sequence[tuple[int, ...]]], torch.Tensor]


@dataclass
class Mixture(Places):
    """
    On which columns a mixture of experts acts, and what its gate is told beside the hidden states.

    Axes: `g` pieces of texts about one thing each, `n` columns of each, `d` hidden size, `e` experts.

    Args:
        anchors (`torch.Tensor` of shape `(g, d)`): What each text is about, as the mean of its input embeddings.
        noise (`torch.Tensor` of shape `(g, n, e)`, *optional*): Added to the gate's scores, in training.
    """

    anchors: torch.Tensor
    noise: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        places: Sequence[tuple[int, Sequence[int]]],
        entities: Sequence[tuple[int, ...]],
        embed: Embed,
        width: int,
    ) -> Mixture:
        """Texts about these `entities`, each acted on in the columns of one row, which `places` tell."""
        anchors = embed(entities)
        return cls(*cls.padded(places, anchors.device), width, anchors)

    @classmethod
    def nowhere(cls, width: int, embed: Embed) -> Mixture:
        """Nothing is written, and a loss has gradients of zero."""
        mixture = cls.of([(0, [width - 1])], [()], embed, width)
        return replace(mixture, written=torch.zeros_like(mixture.written))

    def in_streams(self, times: int) -> Self:
        noise = None if self.noise is None else self.noise.repeat(1, times, 1)
        return replace(super().in_streams(times), noise=noise)


@dataclass
class MixturePass(Pass):
    """
    A pass in which what is asked for tells where the mixture acts.

    Args:
        embed (`Callable`): Gives the mean input embeddings of tuples of tokens.
        learns (`bool`): Whether the mixture is to have gradients, if only of zero.
    """

    embed: Embed
    learns: bool = False

    def _act(self) -> Mixture | None:
        places: list[tuple[int, list[int]]] = []
        entities: list[tuple[int, ...]] = []
        for i, _, columns in self.asked_for():
            of_entity: dict[tuple[int, ...], list[int]] = {}
            for column in columns:
                of_entity.setdefault(self._entity(i, column), []).append(column)
            places += [(self.batch.pieces[i].row, acted_on) for acted_on in of_entity.values()]
            entities += of_entity
        if not places and self.learns:  # in evaluation mode, too, a loss has gradients
            return Mixture.nowhere(self.batch.width, self.embed)
        return Mixture.of(places, entities, self.embed, self.batch.width) if places else None

    def _entity(self, i: int, place: int) -> tuple[int, ...]:
        """What the question is about that is answered in a column of the batch; it is found once, and stays with the text."""
        text, piece = self.askings[i].text, self.batch.pieces[i]
        decision = text.decided(self.askings[i].first + piece.places.index(place))
        decision.entity = decision.entity or of_decision(text, decision)
        return decision.entity
