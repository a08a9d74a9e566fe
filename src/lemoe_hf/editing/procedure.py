"""How edits are made, whatever the method: they are tokenised, grouped, trained and committed, each step once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch

from ..data.edit import Edit
from ..generation import padding_of
from ..routing.anchors import Anchor
from ..structure import text_config
from ..tuners.layer import EditingLayer
from .arguments import EditingArguments
from .edited import EditedModel
from .samples import Sample, samples_of
from .tokens import TokenizedEdit, tokenize_edits
from .training import TrainingOutcome
from .trunk import Trunk


@dataclass(frozen=True)
class Group:
    """
    Edits that are trained together.

    Args:
        edits (`list` of [`Edit`]): The edits.
        items (`list` of [`TokenizedEdit`]): The same as tokens.
        is_last (`bool`): Whether what they are trained in takes no others, and is committed with them.
    """

    edits: list[Edit]
    items: list[TokenizedEdit]
    is_last: bool = True


class Procedure(ABC):
    """
    How edits are made by one method, which tells how they are grouped, trained and committed.

    Args:
        model ([`EditedModel`]): What is edited.
        arguments ([`EditingArguments`]): How to train.
    """

    def __init__(self, model: EditedModel, arguments: EditingArguments):
        self.tuner, self.tokenizer, self.adapter_name = model.tuner, model.tokenizer, model.adapter_name
        self.root, self.edits, self.arguments = model.root, model.edits, arguments
        self.trunk = Trunk(self.root, self.tuner.context, padding_of(self.tokenizer))

    @property
    def config(self):
        return self.tuner.peft_config[self.adapter_name]

    @property
    def layers(self) -> list[EditingLayer]:
        return self.tuner.layers_of(self.adapter_name)

    # ------------------------------------------------------------------------------------------ what a method has to tell

    @staticmethod
    @abstractmethod
    def default_arguments(config) -> EditingArguments:
        """How to train an adapter of this config, where nothing else is asked for."""

    @abstractmethod
    def plan(self, edits: list[Edit], items: list[TokenizedEdit]) -> Iterable[Group]:
        """Group edits, in their order. Each group is trained and committed before the next is asked for."""

    @abstractmethod
    def experts_of(self, group: Group) -> list[int]:
        """The expert of each edit of a group."""

    @abstractmethod
    def train(self, group: Group) -> TrainingOutcome:
        """
        Train a group.

        Returns:
            A loss and a number of steps for each of its edits.

        Raises:
            EditingError: If training breaks down, with the edits, by their place in the group, whose training did.
        """

    @abstractmethod
    def commit(
        self, group: Group, anchors: list[Anchor], entries: list[dict], targets: list[tuple[int, tuple[int, ...]]]
    ) -> None:
        """Store what was trained, and what is known of the edits."""

    def rescale(self, factor: float) -> None:
        """Divide what edits from a training loop write by a factor, which is put in another place."""
        raise NotImplementedError

    # ----------------------------------------------------------------------------------------------------------- shared

    def tokenized(self, edits: list[Edit]) -> list[TokenizedEdit]:
        limit = getattr(text_config(self.root), "max_position_embeddings", None) or -1
        limit = limit if limit > 0 else 2**31  # XLNet, which has no limit, says -1
        return tokenize_edits(self.tokenizer, edits, limit, self.arguments.contexts)

    def samples(
        self, items: Sequence[TokenizedEdit], experts: Sequence[int], anywhere: bool = False
    ) -> list[list[Sample]]:
        """What every edit is trained on; `anywhere`, if it acts from the first token of a text on."""
        ends = self.arguments.end_of_sequence and self.tokenizer.eos_token_id is not None
        end = [self.tokenizer.eos_token_id] if ends else []
        return [samples_of(item, expert, end, anywhere) for item, expert in zip(items, experts, strict=True)]

    def in_training(self) -> list[tuple[EditingLayer, str]]:
        """What can be trained: layers, and by which names these hold it."""
        name = self.adapter_name
        found = [
            (layer, each.removeprefix(layer.prefix)) for layer in self.layers for each in layer.adapter_layer_names
        ]
        return [(layer, each) for layer, each in found if name in layer.container(each)]

    @contextmanager
    def making(self):
        """
        Inside, edits are trained and stored in copies. Others see them when all of that is done; a failure leaves no trace.
        """
        with self.layers[0].changing(self.adapter_name):
            for layer, each in self.in_training():
                layer.put(each, self.adapter_name, deepcopy(layer.part(each, self.adapter_name)))
            yield

    @contextmanager
    def trainable(self):
        """Behind it, what can be trained is marked so as it was before."""
        name = self.adapter_name
        marks = [
            any(w.requires_grad for w in layer.part(each, name).parameters()) for layer, each in self.in_training()
        ]
        try:
            yield
        finally:
            for (layer, each), mark in zip(self.in_training(), marks, strict=True):
                layer.part(each, name).requires_grad_(mark)

    @property
    def device(self) -> torch.device:
        return self.root.get_input_embeddings().weight.device
