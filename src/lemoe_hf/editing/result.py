"""What an edit did: for people to read."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING

from ..display import visible
from .edited import EditedModel


if TYPE_CHECKING:
    from rich.table import Table


@dataclass
class EditResult:
    """
    What one call of `edit` did.

    Args:
        records (`list[dict]`): One an edit: `id`, `expert`, `edit`, the final `loss` in nats a token, and `steps`.
        seconds (`float`): Time the call took.

    The answers `before` and `after` are generated when they are first asked for, and so is the printed table. With
    `deferral=False` no edit can be left out: `before` are then the base model's, and `after` those of all edits.
    """

    editor: EditedModel = field(repr=False)
    records: list[dict]
    seconds: float

    def __len__(self) -> int:
        return len(self.records)

    @property
    def ids(self) -> list[int]:
        return [record["id"] for record in self.records]

    def _answers(self, since: int) -> list[str]:
        """Answers as if no edit had been made from the one with the identifier `since` on."""
        edits = [record["edit"] for record in self.records]
        bounds = [len(self.editor.tokenizer(edit["target_new"])["input_ids"]) + 4 for edit in edits]
        with self._left_out({entry["id"] for entry in self.editor.edits() if entry["id"] >= since}):
            return [text.strip() for text in self.editor.answers([edit["prompt"] for edit in edits], bounds)]

    def _left_out(self, edit_ids: set[int]):
        if self.editor.config.deferral:
            return self.editor.without(edit_ids)
        return self.editor.model.disable_adapter() if edit_ids.issuperset(self.ids) else nullcontext()

    @cached_property
    def before(self) -> list[str]:
        """Answers of the model as it was before these edits."""
        return self._answers(since=min(self.ids))

    @cached_property
    def after(self) -> list[str]:
        """Answers of the model with these edits, and none that came later."""
        return self._answers(since=max(self.ids) + 1)

    def rows(self) -> list[dict]:
        """One row an edit, as printed."""
        return [
            {
                "id": record["id"],
                "prompt": record["edit"]["prompt"],
                "target": record["edit"]["target_new"],
                "before": before,
                "after": after,
                "loss": round(record["loss"], 4),
                "steps": record["steps"],
            }
            for record, before, after in zip(self.records, self.before, self.after, strict=True)
        ]

    def table(self) -> Table:
        from rich.table import Table  # rich draws random numbers when it is imported
        from rich.text import Text

        table = Table(title=f"{len(self)} edits in {self.seconds:.1f} s")
        rows = self.rows()
        for name in rows[0] if rows else ():
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*[Text(visible(value)) for value in row.values()])
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=120)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()

    def _repr_html_(self) -> str:
        rows = self.rows()
        head = "".join(f"<th>{name}</th>" for name in (rows[0] if rows else ()))
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row.values()) + "</tr>" for row in rows
        )
        caption = f"<caption>{len(self)} edits in {self.seconds:.1f} s</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
