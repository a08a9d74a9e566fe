"""Fill the README's tables of measures from the results: `python benchmarks/tables.py`.

A table says in the comment above it which files it shows, one for each row; `FILE:unedited` is the base model's row. What its
rows and columns are called is the README's business, as long as the columns are known here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from report import RESULTS


README = Path(__file__).parent.parent / "README.md"
COLUMNS = {
    "Rel": "reliability",
    "Gen": "generality",
    "Loc": "locality",
    "free Rel": "free_reliability",
    "free Gen": "free_generality",
    "Loc, bit for bit": "locality_exact",
    "PPL": "perplexity",
    "other questions kept": "same_subject_kept",
    "in a chat": "free_reliability_chat",
    "behind 50 tokens": "free_reliability_prefix",
    "in a document": "free_reliability_document",
    "retention": "retention",
    "prompts": "routed_prompt",
    "rephrasings": "routed_rephrase",
    "deferred": "deferred",
}
TABLE = re.compile(r"(?<=<!-- results: )(.+)( -->\n)((?:\|.*\n)+)")


def filled(text: str) -> str:
    """A text with the figures of all its tables as the results have them."""
    return TABLE.sub(lambda match: "".join([match[1], match[2], table(match[1].split(), match[3])]), text)


def table(names: list[str], lines: str) -> str:
    head, rule, *rows = lines.splitlines()
    columns = [COLUMNS[name] for name in cells(head)[1:]]
    written = [head, rule]
    for name, row in zip(names, rows, strict=True):
        file, _, part = name.partition(":")
        measures = json.loads((RESULTS / file).read_text())[part or "measures"]
        values = [f"{measures[column]:.3f}" if column in measures else "" for column in columns]
        written.append(f"| {' | '.join([cells(row)[0], *values])} |")
    return "\n".join(written) + "\n"


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


if __name__ == "__main__":
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
