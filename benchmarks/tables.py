"""Fill the tables of the README, `docs/measured.md` and `docs/compared.md` from the results: `python benchmarks/tables.py`.

A table says in the comment above it which files it shows, one for each row; `FILE:unedited` is the base model's row, and
`FILE:NAME` the row of that name in a file that has several. A pattern such as `table_zsre_1000_*.json` stands for all files
that match, each with a row of the name that it tells (`row`). What rows and columns are called is otherwise the page's
business, as long as the columns are known here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from report import RESULTS


ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "measured.md", ROOT / "docs" / "compared.md")
COLUMNS = {
    "Rel": "reliability",
    "Gen": "generality",
    "Loc": "locality",
    "free Rel": "free_reliability",
    "free Gen": "free_generality",
    "Loc, bit for bit": "locality_exact",
    "and nothing else": "free_reliability_strict",
    "PPL": "perplexity",
    "other questions kept": "same_subject_kept",
    "in a chat": "free_reliability_chat",
    "behind 50 tokens": "free_reliability_prefix",
    "in a document": "free_reliability_document",
    "retention": "retention",
    "kept": "same_subject_kept",
    "of questions": "same_subject_kept_questions",
    "of beginnings of statements": "same_subject_kept_statements",
    "divergence": "same_subject_kl",
    "own expert, prompts": "routed_prompt",
    "own expert, rephrasings": "routed_rephrase",
    "falsely deferred, prompts": "deferred_prompt",
    "falsely deferred, rephrasings": "deferred_rephrase",
    "unrelated deferred": "deferred",
    "KB an edit": "kb_per_edit",
    "KB in all": "kb",
    "seconds an edit": "cpu_seconds_per_edit",
    "edits": "num_edits",
    "conversation": "conversation",
    "Por": "portability",
    "free Por": "free_portability",
    "Loc of Relation_Specificity": "locality_Relation_Specificity",
    "Loc of Forgetfulness": "locality_Forgetfulness",
    "Por of Subject_Aliasing": "portability_Subject_Aliasing",
    "Por of reasoning": "portability_reasoning",
    "Por of Logical_Generalization": "portability_Logical_Generalization",
    "F an edit": "forwards_per_edit",
    "rank": "expert_dim",
    "steps": "steps_per_edit",
    "Gen of the right edit": "generality_right_expert",
    "routed to its expert at the end": "first_batch_reaches_it",
    "its gate": "first_batch_gate",
    "first batch, Rel right after": "first_batch_reliability_then",
    "at the end": "first_batch_reliability",
    "Rel of the last batch": "last_batch_reliability",
    "cosine within": "within",
    "between": "between",
    "conversation, as the base model": "conversation_base",
    "conversation, as the edit": "conversation_target",
    "another topic": "conversation_topic_change",
    "another relation, by pronoun": "conversation_other_relation_pronoun",
    "by name": "conversation_other_relation_name",
    "another subject": "conversation_other_subject",
    "a document": "conversation_document",
    "a doubt, or thanks": "conversation_user_corrects",
    "all of these": "conversation_base",
    "asked by pronoun": "conversation_pronoun",
    "asked again": "conversation_asked_again",
    "a system prompt": "conversation_system_prompt_target",
    "several edits": "conversation_several_edits",
    "sent again as on a cache": "conversation_cache",
    "overlap within": "overlap_within",
    "overlap between": "overlap_between",
}
TABLE = re.compile(r"(?<=<!-- results: )(.+)( -->\n)((?:\|.*\n)+)")


def filled(text: str) -> str:
    """A text with the figures of all its tables as the results have them."""
    return TABLE.sub(lambda match: "".join([match[1], match[2], table(match[1].split(), match[3])]), text)


def table(names: list[str], lines: str) -> str:
    head, rule, *rows = lines.splitlines()
    columns = [COLUMNS[name] for name in cells(head)[1:]]
    titles = [cells(row)[0] for row in rows]
    if any("*" in name for name in names):
        names = sorted(path.name for name in names for path in RESULTS.glob(name))
        titles = [f"`{json.loads((RESULTS / name).read_text())['row']}`" for name in names]
    written = [head, rule]
    for name, title in zip(names, titles, strict=True):
        measures = measures_of(*name.split(":", 1))
        values = [as_text(measures[column]) if column in measures else "" for column in columns]
        written.append(f"| {' | '.join([title, *values])} |")
    return "\n".join(written) + "\n"


def measures_of(file: str, part: str = "measures") -> dict[str, float]:
    report = json.loads((RESULTS / file).read_text())
    if part in report:
        return report[part]
    row = next(row for row in report["rows"] if row["name"].replace(" ", "_") == part)
    return row | row["measures"]


def as_text(value: float) -> str:
    """Shares to a thousandth, other figures to three digits."""
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if abs(value) <= 1 else f"{value:#.3g}"


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")
