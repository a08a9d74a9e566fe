"""One adapter as it was after fewer edits: measures against their number, and who answers what.

    python benchmarks/growth.py --model FOLDER --adapter WORK/adapter --work FOLDER --templates zsre_1000.jsonl

The adapter is one that `lifelong.py` has left in its `--work`. Its experts do not change once they are made, so that the model
after its first N edits is the model without the others. `answered` tells, at the end, what answers four kinds of prompts: the
edit that the prompt is of, another edit of its subject, any other edit, or the base model. What is done is kept in `--work`,
and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from lifelong import AT_ONCE, drawn, finished, first_hundred, without_edited_neighbours
from report import RESULTS, command, write
from same_subject import other_questions

from lemoe_hf import Edit, EditEvaluator, LifelongEditor, read_edits
from lemoe_hf.editing.explanation import acting, looked_at
from lemoe_hf.evaluation import versions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--templates", nargs="*", default=[], help="data whose wordings ask the other questions")
    parser.add_argument("--num-edits", type=int, nargs="+", default=[100, 300, 1000, 2000, 4000])
    parser.add_argument("--sample", type=int, default=100, help="edits to measure on, of those made")
    parser.add_argument("--prompts", type=int, default=300, help="of each kind, to tell what answers them")
    parser.add_argument("--name", default="growth", help="of the result")
    args = parser.parse_args()

    editor, edits = finished(args.model, args.adapter)
    model, tokenizer, entries = editor.model, editor.tokenizer, editor.edits()
    points = []
    for num in args.num_edits:
        with editor.without({entry["id"] for entry in entries[num:]}):
            sample = without_edited_neighbours(drawn(edits[:num], args.sample, seed=0), edits[:num])
            measures = EditEvaluator(sample, AT_ONCE, work=args.work)(model, tokenizer)
            measures["first_hundred"] = first_hundred(model, tokenizer, edits[:num])
        points.append({"edits": num, "measured_on": measures.pop("num_edits"), "measures": measures})
        print(points[-1], flush=True)
    lenders = list(chain(edits, *(read_edits(path) for path in args.templates)))
    report = {
        "command": command(),
        "points": points,
        "answered": answered(editor, entries, edits, lenders, args.prompts),
        "versions": versions(),
    }
    write(report, RESULTS / f"{args.name}.json")


def answered(
    editor: LifelongEditor, entries: list[dict], edits: list[Edit], lenders: list[Edit], num: int
) -> dict[str, dict[str, float]]:
    """Of each kind of prompts, the share that each kind of answer gets."""
    asked = drawn(list(zip(edits, entries, strict=True)), num, seed=3)
    alone = without_edited_neighbours([edit for edit, _ in asked], edits)
    kinds = {
        "prompts": [(edit.prompt, edit.subject, entry["expert"]) for edit, entry in asked],
        "rephrasings": [
            (prompt, edit.subject, entry["expert"])
            for edit, entry in asked
            for prompt, _ in edit.probes("rephrase")[:1]
        ],
        "other questions": [
            (question, edits[i].subject, None) for i, question in drawn(other_questions(edits, lenders), num, seed=2)
        ],
        "unrelated": [(prompt, None, None) for edit in alone for prompt, _ in edit.probes("locality")[:1]],
    }
    subjects = {entry["expert"]: edit.subject for entry, edit in zip(entries, edits, strict=True)}
    return {kind: shares(editor, prompts, subjects) for kind, prompts in kinds.items()}


def shares(
    editor: LifelongEditor, prompts: Sequence[tuple[str, str | None, int | None]], subjects: dict[int, str | None]
) -> dict[str, float]:
    """What answers prompts, each with the subject it names, if any, and the expert that ought to."""
    found: Counter[str] = Counter()
    for prompt, subject, own in prompts:
        ((text, _),) = looked_at(editor, [editor.tokenizer(prompt.rstrip())["input_ids"]])
        expert = next(iter(acting(text)), None)
        if expert is None:
            found["the base model"] += 1
        elif expert == own:
            found["its edit"] += 1
        elif subject is not None and subjects[expert] == subject:
            found["another edit of its subject"] += 1
        else:
            found["any other edit"] += 1
    return {kind: count / len(prompts) for kind, count in found.items()}


if __name__ == "__main__":
    main()
