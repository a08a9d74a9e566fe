"""Read edits from files and data sets."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .edit import Edit
from .formats import FORMATS


def read_edits(source: str | os.PathLike[str] | Iterable[Mapping[str, Any]], format: str | None = None) -> list[Edit]:
    """
    Read edits in any format of the public editing benchmarks.

    | format | told by | target | rephrasings | locality | portability |
    |---|---|---|---|---|---|
    | `easyedit` (also WISE) | `target_new` | `target_new` | `rephrase_prompt` | `locality_prompt` | `portability_prompt` |
    | `knowedit` | `locality` | `target_new`, `labels` | `rephrase_prompt`, `rephrase` | `locality` | `portability` |
    | `zsre` (of MEND) | `src` | `alt`, else `answers` | `rephrase` | `loc` | `portability` |
    | `counterfact` | `requested_rewrite` | `target_new` | `paraphrase_prompts` | `neighborhood_prompts` | |
    | `mquake` (also Remastered) | and `questions` | `target_new` | `question` | | `questions` |
    | `wikibigedit` | `update`, `ans` | `ans` | `rephrase`, `personas` | `loc` | `mhop` |
    | `ultraeditbench` | `prompt`, `ans` | `ans` | `rephrase_prompt` | `loc` | |

    Other names of the subject are read from `aliases`, in the other formats than `easyedit` also from `subject_aliases` or
    `subject_alias`, beside it. Other keys are ignored.

    A subject that is not literally a part of its prompt is left out, except in `easyedit`. Of
    several accepted answers the first is taken.

    Args:
        source (`str`, `os.PathLike` or `Iterable[Mapping]`):
            A file of JSON lines or of one JSON list, or the records themselves: a list, a `datasets.Dataset`.
        format (`str`, *optional*): One of the names above. Without it every record is told by its keys.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a record is not a JSON object, or its prompt or target is missing or empty; the message names the
            file, the line and the key. Also if the file is not UTF-8, if there are no edits, no such format, or no list.

    Example:

    ```python
    >>> read_edits([{"src": "Where is Zembla?", "alt": "In the north", "rephrase": "Zembla lies"}])[0].target_new
    'In the north'

    ```
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"There is no format {format!r}. Take one of {sorted(FORMATS)}, or leave it out.")
    if isinstance(source, Mapping):
        raise ValueError(
            f"Records come in a list; got a mapping with the keys {list(source)[:10]}. Pass one split of a `DatasetDict`, as "
            f"in `dataset['train']`, and one record as `[record]`."
        )
    if isinstance(source, (str, os.PathLike)):
        name, found = str(source), records(Path(source))
    else:
        name, found = "The source", ((record, f"record {number}") for number, record in enumerate(source, 1))
    edits = [edit for record, where in found for edit in edits_from(record, where, format)]
    if not edits:
        raise ValueError(
            f"{name} holds no edits. Write one JSON object a line, with at least `prompt` and `target_new`."
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
            found = json.loads(text, object_pairs_hook=once)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg}).") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {str(error)[:200]}") from None
        for number, record in enumerate(found, 1):
            yield record, f"{path}, record {number}"
        return
    # Not `splitlines`: JSON texts may hold other line separators as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line, object_pairs_hook=once)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error.msg}): {line[:80]!r}.") from None
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: {str(error)[:200]}: {line[:80]!r}.") from None
            yield record, f"{path}, line {number}"


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON, in which each key must be there once: of two values nobody knows which is meant."""
    record = dict(pairs)
    if len(record) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key `{next(key for key in keys if keys.count(key) > 1)}` is there twice")
    return record


def edits_from(record: Any, where: str, format: str | None = None) -> list[Edit]:
    """The edits of one record."""
    if not isinstance(record, Mapping):
        raise ValueError(f"{where}: an edit is a JSON object with `prompt` and `target_new`; got {record!r}.")
    format = format or next((name for name, (_, keys) in FORMATS.items() if keys <= record.keys()), "easyedit")
    if format != "easyedit":
        where = f"{where} (read as `{format}`)"
    try:
        return FORMATS[format][0](record)
    except KeyError as error:
        key = error.args[0]
        raise ValueError(f"{where}: the key `{key}` is missing; the record has {sorted(record)}.") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{where}: a value is of another form than in this format ({error}).") from None
