"""What the subjects of the data allow: names within longer names, subjects that several records share, names left to find.

    python benchmarks/subjects.py --data zsre_1000.jsonl counterfact_3000.jsonl

- `goes_on`: prompts and rephrasings whose own subject goes on, by a capitalised word (`word`) or within its last word
  (`letters`), and unrelated prompts in which that of any edit does: the former would be lost, and the latter are saved, by
  taking such a subject for a longer name.
- `named`: edits whose subject, were it not given, would be taken to be the same.
- `shared`: rephrasings whose subject has several records. `right` tells how many of them would find their own record, and
  `same_target` one with the same target, if the record were the one with the most similar prompt, the latest, or any (what is
  to be expected of chance). `ceiling` is the share of all rephrasings that get their target if every subject is found and
  chance picks the record.

No model is needed.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

from report import RESULTS, command, write

from lemoe_hf import Edit, read_edits
from routing import words


GOES_ON = {"word": r"\s+[A-Z]", "letters": r"(?!s\b)[^\W_]"}


def overlap(one: set[str], other: set[str]) -> float:
    """Jaccard's index."""
    return len(one & other) / len(one | other)


def trigrams(text: str) -> set[str]:
    return {text[i : i + 3] for i in range(len(text) - 2)}


# How alike a rephrasing and the prompt of a record are.
NEAREST: dict[str, Callable[[str, str], float]] = {
    "words": lambda one, other: overlap(set(words(one).split()), set(words(other).split())),
    "trigrams": lambda one, other: overlap(trigrams(one.lower()), trigrams(other.lower())),
    "edit distance": lambda one, other: SequenceMatcher(None, one.lower(), other.lower()).ratio(),
    "the latest": lambda one, other: 0.0,
}


def goes_on(edits: list[Edit]) -> dict:
    own = [(text, edit.subject) for edit in edits for text in (edit.prompt, *texts(edit, "rephrase")) if edit.subject]
    own = [(text, subject) for text, subject in own if subject in text]
    unrelated = [text for edit in edits for text in texts(edit, "locality")]
    names = "|".join(re.escape(name) for name in sorted({edit.subject for edit in edits if edit.subject}))
    return {
        "prompts_and_rephrasings": len(own),
        "of_own_subject": {
            kind: sum(bool(re.match(behind, text.rpartition(subject)[2])) for text, subject in own)
            for kind, behind in GOES_ON.items()
        },
        "unrelated": len(unrelated),
        "of_any_edit": {
            kind: sum(bool(re.search(rf"\b(?:{names}){behind}", text)) for text in unrelated)
            for kind, behind in GOES_ON.items()
        },
    }


def named(edits: list[Edit]) -> int:
    spans = [(edit, replace(edit, subject=None).subject_span()) for edit in edits]
    return sum(span is not None and edit.prompt[slice(*span)] == edit.subject for edit, span in spans)


def shared(edits: list[Edit]) -> dict:
    records: dict[str | None, list[int]] = defaultdict(list)
    for i, edit in enumerate(edits):
        records[edit.subject].append(i)
    asked = [(i, text) for i, edit in enumerate(edits) for text in texts(edit, "rephrase")]
    several = [(i, text) for i, text in asked if len(records[edits[i].subject]) > 1]
    same = {i: [edits[j].target_new == edit.target_new for j in records[edit.subject]] for i, edit in enumerate(edits)}
    found = {
        name: [max(records[edits[i].subject], key=lambda j: (near(text, edits[j].prompt), j)) for i, text in several]
        for name, near in NEAREST.items()
    }
    right = {name: sum(j == i for j, (i, _) in zip(of, several, strict=True)) for name, of in found.items()}
    same_target = {
        name: sum(edits[j].target_new == edits[i].target_new for j, (i, _) in zip(of, several, strict=True))
        for name, of in found.items()
    }
    return {
        "rephrasings": len(several),
        "right": right | {"chance": sum(1 / len(same[i]) for i, _ in several)},
        "same_target": same_target | {"chance": sum(statistics.mean(same[i]) for i, _ in several)},
        "ceiling": statistics.mean(statistics.mean(same[i]) for i, _ in asked),
    }


def texts(edit: Edit, kind: str) -> list[str]:
    return [text for text, _ in edit.probes(kind)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="JSON lines with EasyEdit's keys, and subjects")
    parser.add_argument("--output", default=RESULTS / "subjects.json", type=Path)
    args = parser.parse_args()

    rows = []
    for path in args.data:
        edits = read_edits(path)
        counts = {"goes_on": goes_on(edits), "named": named(edits), "shared": shared(edits)}
        rows.append({"data": Path(path).name, "edits": len(edits)} | counts)
        print(rows[-1], flush=True)
    write({"command": command(), "rows": rows}, args.output)


if __name__ == "__main__":
    main()
