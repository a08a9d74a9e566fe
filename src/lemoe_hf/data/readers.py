"""Read edits from files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .edit import Edit


KEYS = tuple(Edit.__dataclass_fields__)


def read_edits(path: str | Path) -> list[Edit]:
    """
    Read edits from a file of JSON lines, or of one JSON list, with EasyEdit's keys.

    Keys that an [`Edit`] does not have are ignored.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is not a JSON object, or `prompt` or `target_new` is missing or empty; the message names
            the file, the line and the key. Also if the file is not UTF-8, or holds no edits.
    """
    path = Path(path)
    edits = [edit_from(record, where) for record, where in records(path)]
    if not edits:
        raise ValueError(
            f"{path} holds no edits. Write one JSON object a line, with at least `prompt` and `target_new`."
        )
    return edits


def records(path: Path) -> Iterator[tuple[Any, str]]:
    """The records of a file, each with where it stands."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start}). Save it as UTF-8."
        ) from None
    if text.lstrip().startswith("["):
        try:
            for number, record in enumerate(json.loads(text), 1):
                yield record, f"{path}, record {number}"
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
        return
    # Not `splitlines`: JSON texts may hold other line separators as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield json.loads(line), f"{path}, line {number}"
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg}): {line[:80]!r}.") from None


def edit_from(record: Any, where: str) -> Edit:
    """An [`Edit`] from one record."""
    if not isinstance(record, dict):
        raise ValueError(f"{where}: an edit is a JSON object with `prompt` and `target_new`; got {record!r}.")
    for key in ("prompt", "target_new"):
        if key not in record:
            raise ValueError(f"{where}: the key `{key}` is missing; the record has {sorted(record)}.")
    try:
        return Edit(
            **{key: record[key] for key in KEYS if record.get(key) is not None or key in ("prompt", "target_new")}
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
