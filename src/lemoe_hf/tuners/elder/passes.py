"""What an ELDER adapter does in a forward pass: which texts it acts on, and with which LoRAs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...routing.passes import Batch, Pass, Places
from ...routing.text import Mixed
from ...routing.training_batch import Lesson


if TYPE_CHECKING:
    from .layer import ELDERLayer


@dataclass
class MixedPlaces(Places):
    """
    On which columns LoRAs act, and which.

    Args:
        gates (`torch.Tensor` of shape `(l, g, e)`, *optional*):
            Weight of each LoRA, in each layer, for each text. Without it every input chooses by itself.
    """

    gates: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        places: list[tuple[int, list[int]]],
        gates: torch.Tensor,
        width: int,
        loss: torch.Tensor | None = None,
    ) -> MixedPlaces:
        """Gates of shape `(l, g, e)`, each on the columns of one row, which `places` tell."""
        return cls(*cls.padded(places, gates.device), width, gates, loss=loss)


def prompt_columns(batch: Batch) -> list[int | None]:
    """
    Of each text the column, among its new tokens, at which its prompt ends; `None` where it only goes on.

    `generate` and labels tell where that is. Otherwise it is the last token, if there are several, or none before.
    """
    columns: list[int | None] = []
    for text, first, piece in zip(batch.texts, batch.firsts, batch.pieces, strict=True):
        if text.prompt is not None:
            column = text.prompt - 1
            columns.append(column if first <= column < len(text) else None)
        else:
            is_new = text.mixed is None or len(piece.tokens) > 1
            columns.append(len(text) - 1 if is_new and piece.tokens else None)
    return columns


class QueryPass(Pass):
    """
    A pass in which the hidden state of each prompt's last token decides whether LoRAs act on its text, and which.

    Args:
        lead ([`ELDERLayer`]): The layer that leads.
        adapter_name (`str`): The adapter.
        batch ([`Batch`]): What the pass was given.
        asked (`list[int]`): As [`prompt_columns`] tells.
        queried (`nn.Module`, *optional*): The module whose input is looked at.
        learns (`bool`): Whether the mixture is to have gradients, if only of zero.
        lessons (`list` of [`Lesson`], *optional*): What is trained, instead of what is asked.
    """

    def __init__(
        self,
        lead: ELDERLayer,
        adapter_name: str,
        batch: Batch,
        asked: list[int | None],
        queried: nn.Module | None,
        learns: bool,
        lessons: list[Lesson] | None = None,
    ):
        self.lead, self.name, self.batch, self.asked, self.learns = lead, adapter_name, batch, asked, learns
        self.lessons, self.taps = lessons, [] if queried is None else [queried]
        self.askings = batch.askings  # none of which asks anything
        if lessons is None:
            found = [(i, column) for i, column in enumerate(asked) if column is not None]
            self.at = [(batch.pieces[i].row, batch.pieces[i].places[column - batch.firsts[i]]) for i, column in found]
        else:
            self.at = [(each.row, each.places[0 if each.target else -1]) for each in lessons]
        self.waits = bool(self.at)
        self._trained: tuple[torch.Tensor, torch.Tensor] | None = None
        self._acting: Places | None = None
        self._is_over = False

    def tap(self, hidden: torch.Tensor) -> None:
        rows, columns = zip(*self.at, strict=True)
        shift = hidden.shape[1] - self.batch.width  # some models keep columns of their own before those of the tokens
        self.queries = hidden[list(rows), [column + shift for column in columns]].detach().float()

    def decide(self, embed: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.waits = False
        if self.lessons is not None:
            self._trained = self.lead.learn(self.name, self.lessons, self.queries)
            return
        self._choose(self.queries)

    @torch.no_grad()
    def _choose(self, queries: torch.Tensor) -> None:
        """Let each text that has a new prompt keep what acts on it."""
        lead, config = self.lead, self.lead.configs[self.name]
        gates = lead.gates(self.name, queries).transpose(0, 1)
        distance, nearest = lead.nearest(self.name, queries)
        acts = distance < config.threshold_in_use
        if not config.deferral or lead.acts_anyhow(self.name):
            acts = torch.ones_like(acts)
        asked = [(i, column) for i, column in enumerate(self.asked) if column is not None]
        found = zip(asked, acts.tolist(), gates.flatten(1).tolist(), nearest.tolist(), strict=True)
        for (i, column), is_in, of_text, edit in found:
            text = self.batch.texts[i]
            text.mixed = Mixed([], of_text if is_in else [0.0], tuple(text.ids[: column + 1]), edit)
            if config.acts_from == "start":  # whatever the next prompt asks for acts on all that is cached
                text.acted = 0
            elif is_in:
                text.acted = min(text.acted, column)

    def _act(self) -> Places | None:
        if self.waits:
            raise RuntimeError(
                "Nothing has told what chooses the LoRAs: the layer that is looked at has not run before the first mixture. "
                "Leave `target_modules` out, or name linear layers within the stack of layers."
            )
        if self.lessons is not None:
            return self._lessons()
        lead, batch = self.lead, self.batch
        from_start = lead.configs[self.name].acts_from == "start" or lead.acts_anyhow(self.name)
        places, gates = [], []
        for text, first, piece in zip(batch.texts, batch.firsts, batch.pieces, strict=True):
            if text.mixed is not None and any(text.mixed.gates):
                begin = 0 if from_start else len(text.mixed.prompt) - 1
                places.append((piece.row, piece.places[max(begin - first, 0) :]))
                gates.append(text.mixed.gates)
        if self.learns and hasattr(self, "queries"):  # in evaluation mode, too, a loss has gradients
            return self._with_gradients(places)
        if not places:
            return None if not self.learns else nothing(lead, self.name, batch)
        num_layers = len(lead.mixed(self.name))
        of_layers = torch.tensor(gates, device=batch.ids.device).view(len(gates), num_layers, -1).transpose(0, 1)
        return MixedPlaces.of(places, of_layers, batch.width)

    def _with_gradients(self, places: list[tuple[int, list[int]]]) -> Places:
        """The same with gates that have gradients, of zero where no text is acted on."""
        gates = self.lead.gates(self.name, self.queries)
        asked = [i for i, column in enumerate(self.asked) if column is not None]
        acted = [j for j, i in enumerate(asked) if any(self.batch.texts[i].mixed.gates)]
        if len(acted) != len(places) or not places:
            return nothing(self.lead, self.name, self.batch)
        return MixedPlaces.of(places, gates[:, acted], self.batch.width)

    def _lessons(self) -> Places:
        if self._trained is None:  # a batch without any prompt
            return nothing(self.lead, self.name, self.batch)
        gates, guide = self._trained
        config = self.lead.configs[self.name]
        places = [(each.row, each.places) for each in self.lessons]
        if config.acts_from == "start":
            places = [(row, self._until(row, columns[-1])) for row, columns in places]
        return MixedPlaces.of(places, gates, self.batch.width, loss=config.guide_lambda * guide.mean())

    def _until(self, row: int, last: int) -> list[int]:
        """The columns of the text that this one is of, up to it."""
        piece = next(piece for piece in self.batch.pieces if piece.row == row and last in piece.places)
        return [column for column in piece.places if column <= last]


@dataclass
class NamedPass(Pass):
    """
    A pass in which names and what is asked tell which edit acts, and that edit's query which LoRAs.

    Args:
        lead ([`ELDERLayer`]): The layer that leads.
        adapter_name (`str`): The adapter.
        learns (`bool`): Whether the mixture is to have gradients, if only of zero.
    """

    lead: ELDERLayer
    adapter_name: str
    learns: bool = False

    def _act(self) -> Places | None:
        found = self.asked_for()
        if not found:
            return nothing(self.lead, self.adapter_name, self.batch) if self.learns else None
        codes = self.lead.codes(self.adapter_name)
        gates = self.lead.gates(self.adapter_name, codes.queries[codes.rows([edit for _, edit, _ in found])])
        if not self.learns:
            gates = gates.detach()
        places = [(self.batch.pieces[i].row, columns) for i, _, columns in found]
        return MixedPlaces.of(places, gates.to(self.batch.ids.device), self.batch.width)


def nothing(lead: ELDERLayer, adapter_name: str, batch: Batch) -> MixedPlaces:
    """LoRAs with gates of zero on one column, so that what can be trained has gradients."""
    size = lead.part("mixture", adapter_name).router.shape[1]
    gates = 0 * lead.gates(adapter_name, torch.zeros(1, size, device=batch.ids.device))
    return MixedPlaces.of([(0, [batch.width - 1])], gates, batch.width)
