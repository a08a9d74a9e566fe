"""
Who sees which version of what an adapter has stored: a call of `generate`, or a forward pass, one from its start to its end; a
writer what it is about to publish; everybody else what was published last.

What is stored is never changed in place. A writer makes copies, changes these, and publishes all of them at once; whoever
fails before that leaves no trace.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import RLock

from torch import nn


# A layer, one of its containers, and an adapter.
Key = tuple[nn.Module, str, str]


@dataclass(eq=False)
class View:
    """Parts of adapters as they are seen in the place of those that are published; a draft will be published."""

    of: Versions
    parts: dict[Key, nn.Module] = field(default_factory=dict)
    is_draft: bool = False
    fields: list[tuple[object, dict[str, object]]] = field(default_factory=list)


# A context variable, so that each thread sees its own.
_view: ContextVar[View | None] = ContextVar("lemoe_view", default=None)


class Versions:
    """Of the adapters of one model. One writer works at a time; readers never wait for it."""

    def __init__(self) -> None:
        self.writing, self._publishing = RLock(), RLock()

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()

    def __deepcopy__(self, memo: dict) -> Versions:
        return Versions()

    def view(self) -> View | None:
        """What this thread sees in the place of what is published."""
        view = _view.get()
        return view if view is not None and view.of is self else None

    @contextmanager
    def seeing(self, view: View | None) -> Iterator[None]:
        """Inside, this thread sees the parts of a view."""
        before = _view.get()
        try:
            _view.set(view)
            yield
        finally:
            _view.set(before)

    def latest(self, layers: Iterable[nn.Module]) -> View:
        """All that this thread sees now, to go on seeing it."""
        with self._publishing:
            parts: dict[Key, nn.Module] = {
                (layer, name, adapter): module
                for layer in layers
                for name in layer.adapter_layer_names + layer.other_param_names
                for adapter, module in getattr(layer, name).items()
            }
        seen = self.view()
        return View(self, parts if seen is None else parts | seen.parts)

    # ---------------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writer(self) -> Iterator[None]:
        """Inside, this thread is the only one that writes, and it sees what was published last, even within `generate`."""
        with self.writing, self.seeing(self.view() if self._drafts else None):
            yield

    @property
    def _drafts(self) -> bool:
        view = self.view()
        return view is not None and view.is_draft

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Inside, parts are changed that nobody else sees before its end; then all of them are published. May be nested."""
        if self._drafts:
            yield
            return
        draft = View(self, is_draft=True)
        with self.writing:
            with self.seeing(draft):
                yield
            self._publish(draft)

    def _publish(self, draft: View) -> None:
        with self._publishing:
            try:
                self._put(draft)
            except BaseException:  # an interrupt between two of them
                self._put(draft)
                raise

    @staticmethod
    def _put(draft: View) -> None:
        for (layer, name, adapter), module in draft.parts.items():
            getattr(layer, name)[adapter] = module
        for config, fields in draft.fields:
            for name, value in fields.items():
                setattr(config, name, value)

    def put(self, key: Key, module: nn.Module) -> None:
        """Put another module in a part's place; within a change only."""
        if not self._drafts:
            raise RuntimeError("What an adapter has stored is changed within `changing()` only.")
        self.view().parts[key] = module

    def set(self, config: object, fields: dict[str, object]) -> None:
        """Set fields of a config when the change is published."""
        self.view().fields.append((config, fields))

    def is_drafted(self, key: Key) -> bool:
        """Whether this thread has put something in a part's place."""
        return self._drafts and key in self.view().parts


def copied(module: nn.Module) -> nn.Module:
    """A copy that shares all tensors, and can be given others."""
    new = copy.copy(module)
    for name in ("_buffers", "_parameters", "_modules"):
        setattr(new, name, getattr(module, name).copy())
    return new
