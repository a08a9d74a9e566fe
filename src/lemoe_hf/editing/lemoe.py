"""How edits are made in a LEMoE adapter: each in an expert of its own, side by side, or as they fill one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..data.edit import Edit
from ..generation import pad_right
from ..routing.anchors import Anchor
from ..tuners.lemoe.config import LEMoEConfig
from .activations import CachedBatch
from .arguments import EditingArguments
from .lemoe_training import train_experts
from .parallel import processes, train_by_all_processes
from .procedure import Group, Procedure
from .tokens import TokenizedEdit
from .training import EditingError, TrainingOutcome


class LEMoEProcedure(Procedure):
    @staticmethod
    def default_arguments(config: LEMoEConfig) -> EditingArguments:
        return EditingArguments() if config.normalize else EditingArguments.paper()

    # ------------------------------------------------------------------------------------------------------------- plan

    def plan(self, edits: list[Edit], items: list[TokenizedEdit]) -> Iterable[Group]:
        size = self.config.edits_per_expert
        # A training loop may have left edits there, and more of them than an expert is to take; and those that came
        # without their texts cannot be replayed.
        held = self._in_open_expert()
        if len(held) >= size or any("edit" not in entry for entry in held):
            self.tuner.commit(adapter_name=self.adapter_name)
        if self.config.edits_alone:
            for first in range(0, len(edits), self.arguments.batch_size):
                part = slice(first, first + self.arguments.batch_size)
                yield Group(edits[part], items[part])
            return
        room = size - len(self._in_open_expert())
        while edits:
            yield Group(edits[:room], items[:room], is_last=len(edits) >= room)
            edits, items, room = edits[room:], items[room:], size

    def experts_of(self, group: Group) -> list[int]:
        num_committed = len(self.layers[0].bank(self.adapter_name))
        return [num_committed + (i if self.config.edits_alone else 0) for i in range(len(group.edits))]

    def _in_open_expert(self) -> list[dict]:
        if not self.tuner.has_open_edits(self.adapter_name):
            return []
        num_committed = len(self.layers[0].bank(self.adapter_name))
        return [entry for entry in self.edits() if entry["expert"] >= num_committed]

    # ------------------------------------------------------------------------------------------------------------ train

    def train(self, group: Group) -> TrainingOutcome:
        self.batch: CachedBatch | None = None
        if self._shares_out:
            return train_by_all_processes(
                self.layers,
                self.adapter_name,
                len(group.items),
                lambda mine: self._train([group.items[i] for i in mine]),
            )
        if self.config.edits_alone:
            return self._train(group.items)
        try:
            outcome = self._train([*group.items, *self._replayed(group)])
        except EditingError as error:
            raise EditingError(str(error), list(range(len(group.edits)))) from None
        num = len(group.edits)
        return TrainingOutcome(outcome.losses * num, outcome.steps * num)

    @property
    def _shares_out(self) -> bool:
        independent = self.config.edits_alone and self.config.routing == "nearest_anchor"
        return self.arguments.share_out and independent and processes().num_processes > 1

    def _train(self, items: Sequence[TokenizedEdit]) -> TrainingOutcome:
        """Open an expert for each edit, or one for all where it holds several, and train."""
        name, layers, alone = self.adapter_name, self.layers, self.config.edits_alone
        if alone or not self._in_open_expert():
            for layer in layers:
                layer.open_experts(name, len(items) if alone else 1, self.arguments.seed)
        if alone and name in layers[0].container("router"):
            layers[0].open_keys(name, len(items))
        has_keys = self.config.routing == "kv_anchor"
        experts = list(range(len(items))) if alone else [0] * len(items)
        batch, samples = self.trunk.run(self.samples(items, experts, anywhere=has_keys))
        if has_keys:
            ids, _ = pad_right([sample.prompt for sample in samples], -1, batch.start.device)
            batch.anchors = layers[0].keys(name).anchors_of(self.root, ids)
            if self.config.router_replay:
                batch.replayed = layers[0].router_bank(name).others(batch.anchors)
        self.batch = batch
        return train_experts(self.tuner, name, batch, self.arguments)

    def _replayed(self, group: Group) -> list[TokenizedEdit]:
        """What the open expert holds already, less what has been superseded since."""
        latest = {entry["edit"]["prompt"].strip(): Edit(**entry["edit"]) for entry in self._in_open_expert()}
        for edit in group.edits:
            latest.pop(edit.prompt.strip(), None)
        return self.tokenized(list(latest.values())) if latest else []

    # ----------------------------------------------------------------------------------------------------------- commit

    def commit(
        self, group: Group, anchors: list[Anchor], entries: list[dict], targets: list[tuple[int, tuple[int, ...]]]
    ) -> None:
        if not group.is_last:
            self.tuner.store(anchors, entries, self.adapter_name, targets)
            return
        if self.batch is not None and self.config.routing == "kv_anchor" and self.config.router_replay:
            num_committed = len(self.layers[0].bank(self.adapter_name))
            self.layers[0].replay(self.adapter_name, self.batch.anchors, num_committed + self.batch.expert)
        self.tuner.commit(anchors, entries, self.adapter_name, targets)

    def rescale(self, factor: float) -> None:
        for layer in self.layers:
            for name in ("bank", "open"):
                experts = layer.changed(name, self.adapter_name)
                experts.set("out_proj", experts.out_proj.detach() / factor)
                experts.requires_grad_(experts.in_proj.requires_grad)
