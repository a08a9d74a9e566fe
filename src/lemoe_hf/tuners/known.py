"""What an adapter knows of its edits, whatever the method: it is kept in one of its layers, the one that leads."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from ..routing.anchors import Anchor, Anchors
from ..routing.relations import Relations
from ..routing.router import Router
from ..routing.targets import Targets
from ..routing.vocabulary import Vocabulary, kinds_from_lists
from .config import EditingConfig
from .ledger import Bytes, lines_of
from .sizes import write_sizes
from .stamp import Stamp


# In the order in which it is saved.
KNOWN = ("anchors", "targets", "vocabulary", "relations", "ledger", "stamp")


class KnownEdits:
    """The part of an [`EditingLayer`] that knows edits: by which names they are found, what they are about and answer."""

    prefix: ClassVar[str]
    configs: dict[str, EditingConfig]

    def container(self, name: str) -> nn.ModuleDict:
        """Of every adapter that this layer leads, one thing that it knows."""
        return getattr(self, self.prefix + name)

    def lead(self, adapter_name: str, config: EditingConfig) -> None:
        """Make room for what is known of an adapter's edits."""
        self.container("anchors")[adapter_name] = Anchors(config.num_anchors, config.num_anchor_tokens)
        self.container("targets")[adapter_name] = Targets(*(getattr(config, name) for name in Targets.sizes))
        sizes = [getattr(config, name) for name in Vocabulary.sizes]
        self.container("vocabulary")[adapter_name] = Vocabulary(*sizes)
        self.container("ledger")[adapter_name] = Bytes(config.num_ledger_bytes)
        if config.asks_relation:
            sizes = [getattr(config, name) for name in Relations.sizes]
            self.container("relations")[adapter_name] = Relations(*sizes)

    def stamp(self, adapter_name: str) -> Stamp:
        return self.container("stamp")[adapter_name]

    def next_edit(self, adapter_name: str) -> int:
        """The identifier of the next edit. None is given twice, also when the edit that had it was undone."""
        return max(int(self.stamp(adapter_name).next_edit), self.anchors(adapter_name).next_edit())

    def leads(self, adapter_name: str) -> bool:
        """Whether this layer knows the edits of an adapter."""
        return adapter_name in self.container("anchors")

    def anchors(self, adapter_name: str) -> Anchors:
        return self.container("anchors")[adapter_name]

    def targets(self, adapter_name: str) -> Targets:
        return self.container("targets")[adapter_name]

    def relations(self, adapter_name: str) -> Relations | None:
        """What tells edits of one subject apart; `None` where the config does not ask for it."""
        return dict(self.container("relations")).get(adapter_name)

    def ledger(self, adapter_name: str) -> Bytes:
        return self.container("ledger")[adapter_name]

    def vocabulary(self, adapter_name: str) -> Vocabulary:
        """What tokens are. An adapter from before that was kept by itself is given what its relations tell."""
        vocabulary, relations = self.container("vocabulary")[adapter_name], self.relations(adapter_name)
        if not vocabulary.is_known and relations is not None and len(relations.stops):
            vocabulary.kinds = kinds_from_lists(relations.marks, relations.stops, relations.continuing)
            write_sizes(self, adapter_name)
        return vocabulary

    def router(self, adapter_name: str) -> Router:
        config = self.configs[adapter_name]
        return Router(
            self.anchors(adapter_name),
            self.targets(adapter_name),
            self.vocabulary(adapter_name),
            self.relations(adapter_name),
            config.threshold,
            config.relation_threshold,
        )

    def store(
        self,
        adapter_name: str,
        anchors: list[Anchor],
        entries: list[dict],
        targets: list[tuple[int, tuple[int, ...]]],
    ) -> None:
        """Append anchors, lines of the ledger, and targets."""
        stamp, ids = self.stamp(adapter_name), [anchor.edit for anchor in anchors]
        stamp.next_edit = stamp.next_edit.new_tensor([max([int(stamp.next_edit), *(each + 1 for each in ids)])])
        self.anchors(adapter_name).add(anchors)
        self.targets(adapter_name).add(targets)
        self.ledger(adapter_name).append(lines_of(entries))
        write_sizes(self, adapter_name)

    def remember(self, adapter_name: str, edits: list[int], embedded: torch.Tensor) -> None:
        """Append keys of edits, as [`Relations.add`] does: from now on they act only where they are asked for."""
        self.container("relations")[adapter_name].add(edits, embedded)
        write_sizes(self, adapter_name)
