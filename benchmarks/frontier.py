"""Generality against other questions kept, along the threshold of what is asked: one adapter, measured at each of them.

    python benchmarks/frontier.py --model FOLDER --adapter WORK/adapter --data zsre_1000.jsonl --work FOLDER

The adapter is one that `lifelong.py` has left in its `--work`. A threshold of -100 lets every question about an edited subject
through. What is done is kept in `--work`, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

from lifelong import AT_ONCE, drawn, finished
from report import RESULTS, command, write
from same_subject import other_questions

from lemoe_hf import EditEvaluator, read_edits
from lemoe_hf.evaluation import SameSubject, versions


THRESHOLDS = (-100.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 1.5, 2.0, 3.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--data", required=True, nargs="+", help="whose wordings ask the other questions")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--sample", type=int, default=200, help="edits to measure on, and as many questions")
    parser.add_argument("--name", default="frontier", help="of the result")
    args = parser.parse_args()

    editor, edits = finished(args.model, args.adapter)
    model, tokenizer = editor.model, editor.tokenizer
    lenders = list(chain.from_iterable(read_edits(path) for path in args.data))
    sample = drawn(edits, args.sample, seed=0)
    questions = drawn([question for _, question in other_questions(edits, lenders)], args.sample, seed=2)

    points = []
    for threshold in (None, *args.thresholds):
        editor.config.relation_threshold = threshold
        points.append(
            {
                "threshold": threshold,
                **EditEvaluator(sample, AT_ONCE, measures=["generality", "routing"], work=args.work)(model, tokenizer),
                **SameSubject(questions, AT_ONCE, work=args.work)(model, tokenizer),
            }
        )
        print(points[-1], flush=True)
    relations = model.base_model.layers_of()[0].lemoe_relations["default"]
    report = {
        "command": command(),
        "num_edits": len(edits),
        "default_thresholds": dict(zip(("questions", "statements"), relations.thresholds.tolist(), strict=True)),
        "points": points,
        "versions": versions(),
    }
    write(report, RESULTS / f"{args.name}.json")


if __name__ == "__main__":
    main()
