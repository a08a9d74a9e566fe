"""How edits are made in an ELDER adapter: in small batches, all in the same LoRAs, whose routers are guided."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from ..data.edit import Edit
from ..data.reference import reference_prompts
from ..routing.anchors import Anchor
from ..tuners.elder.config import ELDERConfig
from ..tuners.elder.layer import ELDERLayer
from ..tuners.elder.passes import MixedPlaces
from .activations import CachedBatch
from .arguments import EditingArguments
from .hooks import recorded
from .procedure import Group, Procedure
from .tokens import TokenizedEdit
from .training import EditingError, TrainingOutcome


class ELDERProcedure(Procedure):
    """
    Nothing is frozen: later batches train the same LoRAs and routers. `arguments.replay` earlier edits, drawn at random, are
    trained along with each batch.
    """

    unrelated: torch.Tensor | None = None  # queries of prompts that no edit is about

    @staticmethod
    def default_arguments(config: ELDERConfig) -> EditingArguments:
        if not config.normalize:
            return PAPER
        return REPAIRED

    @property
    def lead(self) -> ELDERLayer:
        return self.layers[0]

    # ------------------------------------------------------------------------------------------------------------- plan

    def plan(self, edits: list[Edit], items: list[TokenizedEdit]) -> Iterable[Group]:
        for first in range(0, len(edits), self.arguments.batch_size):
            part = slice(first, first + self.arguments.batch_size)
            yield Group(edits[part], items[part])

    def experts_of(self, group: Group) -> list[int]:
        """Every edit stands for itself: the index of its code is its identifier."""
        first = self.lead.anchors(self.adapter_name).next_edit()
        return list(range(first, first + len(group.edits)))

    # ------------------------------------------------------------------------------------------------------------ train

    def train(self, group: Group) -> TrainingOutcome:
        name, config = self.adapter_name, self.config
        self.queries = self.queries_of([item.prompt for item in group.items])
        self.allocated = self.lead.allocate(name, [item.targets[0] for item in group.items], self.arguments.seed)
        old, rows_of_old = self._replayed(group)
        codes, queries, allocated = self.lead.codes(name), self.queries, self.allocated
        if old:
            queries = torch.cat([queries, codes.queries[rows_of_old].to(queries)])
            earlier = codes.allocated[rows_of_old].view(-1, *allocated.shape[1:])
            allocated = torch.cat([allocated, earlier.to(allocated)])
        samples = self.samples([*group.items, *old], range(len(queries)), anywhere=config.acts_from == "start")
        batch, rows = self.trunk.run(samples)
        of_rows = queries[batch.expert]
        if config.deferral_by == "hamming":  # there a text chooses by itself, in whatever surroundings
            of_rows = self.queries_of([sample.prompt for sample in rows])
        try:
            return self._train(batch, of_rows, allocated[batch.expert], len(group.edits))
        except EditingError as error:
            raise EditingError(str(error), list(range(len(group.edits)))) from None

    def _train(self, batch: CachedBatch, queries: torch.Tensor, allocated: torch.Tensor, num: int) -> TrainingOutcome:
        """Train on all samples at once until all are learned; the first `num` edits are those of the group."""
        optimizer, arguments = self._optimizer(), self.arguments
        for step in range(arguments.max_steps + 1):
            gates, guide = self.lead.trained(self.adapter_name, queries, allocated)
            losses = batch.losses(batch.logits({self.adapter_name: acting_on(batch, gates)}))
            if not torch.isfinite(losses).all():
                raise EditingError(
                    f"The loss became {losses[~torch.isfinite(losses)][0].item()} after {step} steps.", []
                )
            if step == arguments.max_steps or (losses <= arguments.stop_loss).all():
                break
            optimizer.zero_grad()
            (losses.mean() + self.config.guide_lambda * guide.mean()).backward()
            optimizer.step()
        optimizer.zero_grad()
        of_edits = [losses[batch.expert == i].mean().item() for i in range(num)]
        return TrainingOutcome(of_edits, [step] * num)

    def _optimizer(self) -> torch.optim.Optimizer:
        groups = []
        for layer in self.layers:
            mixture = layer.part("mixture", self.adapter_name).requires_grad_(True)
            for key, weight in mixture.named_parameters():
                scale = 1.0
                if self.arguments.relative and key != "out_proj":
                    scale = weight.shape[1] ** -0.5
                groups.append({"params": [weight], "lr": self.arguments.learning_rate * scale})
        return torch.optim.Adam(groups, betas=self.arguments.betas)

    def _replayed(self, group: Group) -> tuple[list[TokenizedEdit], list[int]]:
        """Earlier edits drawn at random, less what is superseded, and where their codes are stored."""
        if not self.arguments.replay:
            return [], []
        latest = {
            entry["edit"]["prompt"].strip(): (entry["id"], Edit(**entry["edit"]))
            for entry in self.edits()
            if "edit" in entry
        }
        for edit in group.edits:
            latest.pop(edit.prompt.strip(), None)
        known = sorted(latest.values(), key=lambda each: each[0])
        drawn = random.Random(len(known)).sample(known, min(self.arguments.replay, len(known)))
        if not drawn:
            return [], []
        rows = self.lead.codes(self.adapter_name).rows([edit_id for edit_id, _ in drawn])
        items = self.tokenized([edit for _, edit in drawn])
        return [replace(item, contexts=[]) for item in items], rows.tolist()  # what they have taken on elsewhere stays

    def queries_of(self, prompts: Sequence[list[int]]) -> torch.Tensor:
        """The queries of prompts, of shape `(g, q)`: what enters the module that is looked at, at their last tokens."""
        context = self.tuner.context
        found: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
        modules, pad = [context.queried[self.adapter_name]], self.trunk.pad
        with torch.no_grad():
            for rows, ids, mask, (hidden,) in recorded(self.root, context, modules, prompts, pad):
                end = mask.sum(1) - 1 + hidden.shape[1] - ids.shape[1]
                for i, query in zip(rows, hidden[torch.arange(len(rows), device=ids.device), end], strict=True):
                    found[i] = query.float()
        return torch.stack(found)

    # ----------------------------------------------------------------------------------------------------------- commit

    def commit(
        self, group: Group, anchors: list[Anchor], entries: list[dict], targets: list[tuple[int, tuple[int, ...]]]
    ) -> None:
        name, config = self.adapter_name, self.config
        self.lead.keep(name, [entry["id"] for entry in entries], self.queries, self.allocated)
        self.tuner.store(anchors, entries, name, targets)
        if config.refresh_codes:
            self.lead.refresh_codes(name)
        if config.deferral_by == "hamming" and config.deferral and config.deferral_threshold == "calibrate":
            self._calibrate()

    def _calibrate(self) -> None:
        """Take the largest threshold at which few enough of the package's own everyday prompts are acted on."""
        if self.unrelated is None:
            self.unrelated = self.queries_of(self.tokenizer(list(reference_prompts()))["input_ids"])
        config = self.config
        distance = self.lead.distance(self.adapter_name, self.unrelated)
        threshold, rate = calibrated(distance, self.lead.codes(self.adapter_name).codes.shape[1], config)
        self.tuner.context.versions.set(config, {"hamming_threshold": threshold})
        if rate > config.false_accept_rate:
            warnings.warn(
                f"No Hamming threshold is selective: at the smallest, 2, which asks for an edit's very code, {rate:.0%} of "
                f"{len(distance)} unrelated prompts are acted on, more than `false_accept_rate={config.false_accept_rate}`. "
                f"Answers that no edit is about will change. Use `deferral_by='names'`, or more layers and LoRAs.",
                stacklevel=2,
            )

    def rescale(self, factor: float) -> None:
        for layer in self.layers:
            mixture = layer.changed("mixture", self.adapter_name)
            mixture.out_proj = torch.nn.Parameter(mixture.out_proj.detach() / factor, mixture.out_proj.requires_grad)


def calibrated(distance: torch.Tensor, num_bits: int, config: ELDERConfig) -> tuple[int, float]:
    """The largest threshold, of those from 2 on, that few enough distances are below, else 2; and the share that is."""
    shares = {threshold: (distance < threshold).float().mean().item() for threshold in range(2, num_bits + 1, 2)}
    best = max((each for each, share in shares.items() if share <= config.false_accept_rate), default=2)
    return best, shares[best]


def acting_on(batch: CachedBatch, gates: torch.Tensor) -> MixedPlaces:
    """Gates of shape `(l, b, e)` on the columns of a batch from which on each sample is acted on."""
    column = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
    row = torch.arange(len(batch.ids), device=batch.ids.device)[:, None].expand_as(batch.ids)
    acts = column >= (batch.start - batch.first)[:, None]
    return MixedPlaces(row, column, acts, batch.ids.shape[1], gates)


# Adam with 1e-4, 50 steps on batches of 4 (ELDER, section "Experiments"); their number is fixed.
PAPER = EditingArguments(
    learning_rate=1e-4,
    relative=False,
    betas=(0.9, 0.999),
    max_steps=50,
    stop_loss=0.0,
    batch_size=4,
    end_of_sequence=False,
    contexts=(),
)
REPAIRED = EditingArguments(learning_rate=0.05, betas=(0.9, 0.999), max_steps=50, batch_size=4, replay=16)
