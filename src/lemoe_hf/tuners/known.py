"""What an adapter knows of its edits, whatever the method: it is kept in one of its layers, the one that leads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import nn

from ..routing.anchors import Anchor, Anchors
from ..routing.context import RoutingContext
from ..routing.name_index import Name
from ..routing.names import Names
from ..routing.relations import Relations
from ..routing.router import Router
from ..routing.targets import Targets
from ..routing.versions import copied
from ..routing.vocabulary import Vocabulary, kinds_from_lists
from .config import EditingConfig
from .ledger import Bytes, lines_of
from .sizes import sizes_of, write_sizes
from .stamp import Stamp


# In the order in which it is saved.
KNOWN = ("anchors", "names", "targets", "vocabulary", "relations", "ledger", "stamp")


class KnownEdits:
    """The part of an [`EditingLayer`] that knows edits: by which names they are found, what they are about and answer."""

    prefix: ClassVar[str]
    configs: dict[str, EditingConfig]
    context: RoutingContext

    # ---------------------------------------------------------------------------------------------------- what is stored

    def container(self, name: str) -> nn.ModuleDict:
        """What this layer holds by this name of each adapter, as it is published."""
        return getattr(self, self.prefix + name)

    def part(self, name: str, adapter_name: str) -> nn.Module:
        """What this layer holds of an adapter, in the version that this thread sees."""
        seen = self.context.view()
        key = (self, self.prefix + name, adapter_name)
        return seen.parts[key] if seen is not None and key in seen.parts else self.container(name)[adapter_name]

    def put(self, name: str, adapter_name: str, module: nn.Module) -> None:
        """Put something else in a part's place, within a change."""
        self.context.versions.put((self, self.prefix + name, adapter_name), module)

    def changed(self, name: str, adapter_name: str) -> nn.Module:
        """A part to be changed, within a change: a copy of what others go on seeing. Its tensors are replaced, not changed."""
        part = self.part(name, adapter_name)
        if not self.context.versions.is_drafted((self, self.prefix + name, adapter_name)):
            part = copied(part)
            self.put(name, adapter_name, part)
        return part

    @contextmanager
    def changing(self, adapter_name: str) -> Iterator[None]:
        """Inside, parts are changed; they are published together at its end, or, after a failure, not at all."""
        with self.context.versions.changing():
            yield
            self.context.versions.set(self.configs[adapter_name], sizes_of(self, adapter_name))

    # ------------------------------------------------------------------------------------------------------ what is known

    def lead(self, adapter_name: str, config: EditingConfig) -> None:
        """Make room for what is known of an adapter's edits."""
        self.container("anchors")[adapter_name] = Anchors(config.num_anchors, config.num_anchor_tokens)
        self.container("names")[adapter_name] = Names(*(getattr(config, name) for name in Names.sizes))
        self.container("targets")[adapter_name] = Targets(*(getattr(config, name) for name in Targets.sizes))
        sizes = [getattr(config, name) for name in Vocabulary.sizes]
        self.container("vocabulary")[adapter_name] = Vocabulary(*sizes)
        self.container("ledger")[adapter_name] = Bytes(config.num_ledger_bytes)
        if config.asks_relation:
            sizes = [getattr(config, name) for name in Relations.sizes]
            self.container("relations")[adapter_name] = Relations(*sizes)

    def stamp(self, adapter_name: str) -> Stamp:
        return self.part("stamp", adapter_name)

    def next_edit(self, adapter_name: str) -> int:
        """The identifier of the next edit. None is given twice, also when the edit that had it was undone."""
        return max(int(self.stamp(adapter_name).next_edit), self.anchors(adapter_name).next_edit())

    def reserve(self, adapter_name: str, next_edit: int) -> None:
        """Within a change: give no identifier below this one any more."""
        stamp = self.changed("stamp", adapter_name)
        stamp.next_edit = stamp.next_edit.new_tensor([max(int(stamp.next_edit), next_edit)])

    def leads(self, adapter_name: str) -> bool:
        """Whether this layer knows the edits of an adapter."""
        return adapter_name in self.container("anchors")

    def anchors(self, adapter_name: str) -> Anchors:
        return self.part("anchors", adapter_name)

    def names(self, adapter_name: str) -> Names:
        return self.part("names", adapter_name)

    def targets(self, adapter_name: str) -> Targets:
        return self.part("targets", adapter_name)

    def relations(self, adapter_name: str) -> Relations | None:
        """What tells edits of one subject apart; `None` where the config does not ask for it."""
        return self.part("relations", adapter_name) if adapter_name in self.container("relations") else None

    def ledger(self, adapter_name: str) -> Bytes:
        return self.part("ledger", adapter_name)

    def vocabulary(self, adapter_name: str) -> Vocabulary:
        """What tokens are. An adapter from before that was kept by itself is given what its relations tell."""
        vocabulary, relations = self.part("vocabulary", adapter_name), self.relations(adapter_name)
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
            self.names(adapter_name),
            config.fuzzy,
        )

    def store(
        self,
        adapter_name: str,
        anchors: list[Anchor],
        entries: list[dict],
        targets: list[tuple[int, tuple[int, ...]]],
    ) -> None:
        """Append anchors, lines of the ledger, and targets."""
        ids = [anchor.edit for anchor in anchors]
        with self.changing(adapter_name):
            self.reserve(adapter_name, max((each + 1 for each in ids), default=0))
            self.changed("anchors", adapter_name).add(anchors)
            self.changed("targets", adapter_name).add(targets)
            self.changed("ledger", adapter_name).write(lines_of(entries))

    def name(self, adapter_name: str, names: list[Name]) -> None:
        """Append names of edits, by which they are found letter by letter."""
        with self.changing(adapter_name):
            self.changed("names", adapter_name).add(names)

    def remember(self, adapter_name: str, edits: list[int], embedded: torch.Tensor) -> None:
        """Append keys of edits, as [`Relations.add`] does: from now on they act only where they are asked for."""
        with self.changing(adapter_name):
            self.changed("relations", adapter_name).add(edits, embedded)
