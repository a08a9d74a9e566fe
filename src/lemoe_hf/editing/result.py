"""What an edit did, and what an edited model would do: for people to read."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from rich.table import Table

    from .editor import LifelongEditor


@dataclass
class EditResult:
    """
    What one call of `edit` did.

    Args:
        records (`list[dict]`): One an edit: `id`, `expert`, `edit`, the final `loss` in nats a token, and `steps`.
        seconds (`float`): Time the call took.

    The answers `before` and `after` are generated when they are first asked for, and so is the printed table.
    """

    editor: LifelongEditor = field(repr=False)
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
        later = {entry["id"] for entry in self.editor.edits() if entry["id"] >= since}
        with self.editor.without(later):
            return [text.strip() for text in self.editor.answers([edit["prompt"] for edit in edits], bounds)]

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

        table = Table(title=f"{len(self)} edits in {self.seconds:.1f} s")
        rows = self.rows()
        for name in rows[0] if rows else ():
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*[str(value) for value in row.values()])
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


@dataclass(frozen=True)
class Explanation:
    """
    Why a prompt is answered as it is.

    Args:
        prompt (`str`): The prompt.
        entry (`dict`, *optional*): The ledger's entry of the edit that answers; `None` where the base model does, or
            an expert that a router has chosen for a prompt of no edit of its own.
        expert (`int`, *optional*): The expert that answers; `None` where the base model does.
        score (`float`): Share of the best anchor's tokens found in a row.
        threshold (`float`, *optional*): Share at which that anchor is found; `None` where no anchor comes near.
        matched (`str`): The part of the prompt that was recognised.
        relation_score (`float`, *optional*):
            How surely the prompt asks for what the edit is about, in standard deviations; `None` where that was not
            looked at, since the prompt is the edit's own or the config does not ask for it.
        relation_threshold (`float`, *optional*): Score from which on it does.
    """

    prompt: str
    entry: dict | None
    expert: int | None
    score: float
    threshold: float | None
    matched: str
    relation_score: float | None = None
    relation_threshold: float | None = None

    @property
    def deferred(self) -> bool:
        return self.expert is None

    def __str__(self) -> str:
        asks = ""
        if self.relation_score is not None:
            asks = f"asks for what it is about by {self.relation_score:.1f}, threshold {self.relation_threshold:.1f}"
        if self.deferred and self.matched:
            return f"{self.prompt!r}: the base model answers ({self.matched!r} was edited, but the prompt {asks})."
        if self.deferred:
            near = (
                "nothing like it was edited"
                if self.threshold is None
                else f"the nearest anchor scores {self.score:.2f}, below its threshold of {self.threshold:.2f}"
            )
            return f"{self.prompt!r}: the base model answers ({near})."
        if self.entry is None:
            return f"{self.prompt!r}: expert {self.expert} answers, whose key is nearest."
        edit = self.entry["edit"]
        return (
            f"{self.prompt!r}: edit {self.entry['id']} answers ({edit['prompt']!r} -> {edit['target_new']!r}), expert "
            f"{self.expert}, for {self.matched!r}: score {self.score:.2f}, threshold {self.threshold:.2f}"
            + (f"; {asks}." if asks else ".")
        )
