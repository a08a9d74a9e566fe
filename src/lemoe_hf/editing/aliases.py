"""Other names of what an edit is about."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from ..data.edit import Edit, key_of
from ..routing.names import Names
from ..tuners.ledger import lines_of
from .edited import EditedModel
from .spelling import Naming


def add_alias(editor: EditedModel, naming: Naming, edit_id: int, alias: str) -> None:
    """As [`LifelongEditor.add_alias`] does: a name more, and the ledger's entry with it, published together."""
    lead, name = editor._lead, editor.adapter_name
    with editor.tuner.context.versions.writer():
        entries = editor.tuner.ledger(name)
        entry = next((entry for entry in entries if entry["id"] == edit_id), None)
        if entry is None:
            raise KeyError(f"There is no edit {edit_id}; the ledger has {[each['id'] for each in entries][-20:]}.")
        if not editor.config.finds_names or not lead.vocabulary(name).is_spelled:
            raise ValueError(f"The adapter {name!r} finds edits by tokens alone, and knows no aliases.")
        if "edit" not in entry:
            raise ValueError(
                f"What edit {edit_id} is about is not known: its texts were kept back, or it was made by a loop."
            )
        edit = Edit(**entry["edit"])
        known = edit.aliases or ()
        changed = replace(edit, aliases=(*known, alias))
        if changed.aliases == edit.aliases:
            warnings.warn(f"Edit {edit_id} is found by {alias!r} already.", stacklevel=3)
            return
        found = naming.name(alias, edit_id)
        if found is None:
            raise ValueError(
                f"{alias!r} stands in everyday language as it is, and would be found everywhere. Take a longer name."
            )
        warn_of_others(lead.names(name), edit, [alias])
        entry["edit"] = changed.to_dict()
        with lead.changing(name):
            lead.changed("names", name).add([found])
            lead.changed("ledger", name).text = lines_of(entries)


def warn_of_others(stored: Names, edit: Edit, aliases: Sequence[str]) -> None:
    """Tell of aliases by which something else was edited: what a question asks decides between them."""
    span = edit.subject_span()
    subject = key_of(edit.prompt[slice(*span)]) if span else ""
    for alias in aliases:
        others = {name.edit for name in stored.exactly(key_of(alias))}
        others -= {name.edit for name in stored.exactly(subject)}
        if others:
            warnings.warn(
                f"The alias {alias!r} of {edit.prompt!r} is also a name of edit {max(others)}. Where a text "
                f"holds it, that edit is taken which the question asks for.",
                stacklevel=4,
            )
