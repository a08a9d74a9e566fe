"""How edits are made in a MEMoE adapter: those of a call together, in all experts and the gate at once."""

from __future__ import annotations

import random
from collections.abc import Iterable

import torch

from ..data.edit import Edit
from ..routing.anchors import Anchor, Anchors
from ..routing.entities import entity_of, last_subject
from ..routing.kv_anchor import padded
from ..routing.text import Text
from ..tuners.memoe.config import MEMoEConfig
from ..tuners.memoe.layer import MIXTURE, mean_embeddings
from .arguments import EditingArguments
from .memoe_training import train_mixture
from .procedure import Group, Procedure
from .samples import Sample
from .tokens import TokenizedEdit
from .training import EditingError, TrainingOutcome


class MEMoEProcedure(Procedure):
    @staticmethod
    def default_arguments(config: MEMoEConfig) -> EditingArguments:
        if not config.normalize:
            return EditingArguments.paper()
        # A pass over a few edits is a single step.
        return EditingArguments(learning_rate=3e-3, betas=(0.9, 0.99), max_steps=300, batch_size=16)

    def plan(self, edits: list[Edit], items: list[TokenizedEdit]) -> Iterable[Group]:
        yield Group(edits, items)

    def experts_of(self, group: Group) -> list[int]:
        return [MIXTURE] * len(group.edits)

    # ------------------------------------------------------------------------------------------------------------ train

    def train(self, group: Group) -> TrainingOutcome:
        items = [*group.items, *self._replayed(group)]
        batch, samples = self.trunk.run(self.samples(items, range(len(items)), anywhere=not self.config.deferral))
        batch.anchors = mean_embeddings(self.root, self.device, self._entities(items, samples))
        try:
            losses, passes = train_mixture(self.tuner, self.adapter_name, batch, self.arguments)
        except FloatingPointError as error:
            raise EditingError(str(error), list(range(len(group.edits)))) from None
        own = batch.own.float()
        mean = torch.zeros(len(items), device=own.device).index_add(0, batch.expert, losses * own)
        return TrainingOutcome(mean[: len(group.edits)].tolist(), [passes] * len(group.edits))

    def _replayed(self, group: Group) -> list[TokenizedEdit]:
        """Some earlier edits, less those that are superseded now."""
        new = {edit.prompt.strip() for edit in group.edits}
        earlier = [Edit(**entry["edit"]) for entry in self.tuner.ledger(self.adapter_name) if "edit" in entry]
        earlier = [edit for edit in earlier if edit.prompt.strip() not in new]
        drawn = random.Random(self.arguments.seed).sample(earlier, min(self.config.replay, len(earlier)))
        return self.tokenized(drawn) if drawn else []

    def _entities(self, items: list[TokenizedEdit], samples: list[Sample]) -> list[tuple[int, ...]]:
        """What each text is about, as it will be found out when the edits are stored."""
        subjects = Anchors()
        subjects.add(
            [
                Anchor(tokens, i, MIXTURE, start)
                for i, item in enumerate(items)
                for tokens, is_prompt, start in item.spans
                if not is_prompt
            ]
        )
        vocabulary = self.layers[0].vocabulary(self.adapter_name)
        found = subjects.find(padded([sample.prompt for sample in samples]))
        entities = []
        for sample, matches in zip(samples, found, strict=True):
            text, last = Text(), len(sample.prompt) - 1
            text.read(sample.prompt, range(last + 1), vocabulary)
            entities.append(entity_of(text, last, last_subject(matches, sample.expert, last)))
        return entities

    def commit(
        self, group: Group, anchors: list[Anchor], entries: list[dict], targets: list[tuple[int, tuple[int, ...]]]
    ) -> None:
        if self.config.deferral:
            self._forget_superseded(group)
        self.tuner.store(anchors, entries, self.adapter_name, targets)

    def _forget_superseded(self, group: Group) -> None:
        """Take earlier edits of these prompts back: the mixture has their new answers in the place of the old ones."""
        new = {edit.prompt.strip() for edit in group.edits}
        for entry in self.edits():
            if "edit" in entry and entry["edit"]["prompt"].strip() in new:
                self.tuner.remove_edit(entry["id"], self.adapter_name)

    def rescale(self, factor: float) -> None:
        for layer in self.layers:
            mixture = layer.changed("mixture", self.adapter_name)
            mixture.set("out_proj", mixture.out_proj.detach() / factor)
            mixture.requires_grad_(mixture.in_proj.requires_grad)
