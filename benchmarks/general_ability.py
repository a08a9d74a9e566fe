"""Scores of an edited model and of its base on tasks of lm-eval, without a download.

    python benchmarks/general_ability.py --model FOLDER --adapter WORK/adapter

The adapter is one that `lifelong.py` has left in its `--work`. No task of lm-eval comes with its data; what is at hand is
asked:

- `mmlu_examples`: the questions of MMLU's development set that lm-eval brings as examples, by the text of the answer;
- `locality`: the locality questions of the edits, with the true answer among those to three other questions;
- `everyday`: bits per byte of the package's reference prompts, on which thresholds of anchors were calibrated;
- `edits`: the edits' own prompts, with the target among those of three other edits;
- `edits_free`: the same prompts, answered freely.

`--tasks arc_easy hellaswag` adds tasks by their names, with data from the Hub.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from datasets import Dataset
from lifelong import finished
from report import RESULTS, command, write

from lemoe_hf.data import reference_prompts
from lemoe_hf.evaluation import general_ability, versions


CHOICES = 4
EXAMPLE = re.compile(
    r"(.+?)\s+\(A\) (.+?)\s+\(B\) (.+?)\s+\(C\) (.+?)\s+\(D\) (.+?)\nA: .*answer is \(([A-D])\)", re.DOTALL
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--adapter", required=True, help="folder of the adapter")
    parser.add_argument("--tasks", nargs="*", default=[], help="further tasks, by their names")
    parser.add_argument("--limit", type=int, default=None, help="documents of each task, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=RESULTS / "general_ability.json", type=Path)
    args = parser.parse_args()

    editor, edits = finished(args.model, args.adapter)
    targets = {edit.prompt: edit.target_new for edit in edits}  # the latest of a prompt counts
    locality = {as_question(prompt): answer for edit in edits for prompt, answer in edit.probes("locality") if answer}
    rows = {
        "mmlu_examples": mmlu_examples(),
        "locality": choices(locality, args.seed),
        "everyday": [{"text": text} for text in reference_prompts()],
        "edits": choices(targets, args.seed),
        "edits_free": [{"question": prompt, "target": target} for prompt, target in targets.items()],
    }
    draw = random.Random(args.seed)
    rows = {name: draw.sample(some, min(args.limit or len(some), len(some))) for name, some in rows.items() if some}
    tasks = [task(name, some) for name, some in rows.items()]
    measures = general_ability(editor.model, editor.tokenizer, [*tasks, *args.tasks], args.limit)
    report = {
        "command": command(),
        "num_edits": len(edits),
        "num_documents": {name: len(some) for name, some in rows.items()},
        "measures": measures,
        "versions": versions() | {"lm_eval": version("lm_eval")},
    }
    print(json.dumps(measures, indent=1))
    write(report, args.output)


def mmlu_examples() -> list[dict]:
    text = files("lm_eval").joinpath("tasks/mmlu/flan_cot_fewshot/_cot_prompts.json").read_text(encoding="utf-8")
    blocks = [block for subject in json.loads(text).values() for block in subject.split("\n\nQ: ")[1:]]
    rows = []
    for found in filter(None, map(EXAMPLE.match, blocks)):  # one has five answers
        question, *answers, letter = found.groups()
        row = {"question": f"Question: {question}\nAnswer:", "choices": answers, "gold": "ABCD".index(letter)}
        rows.append(row)
    return rows


def choices(answers: dict[str, str], seed: int) -> list[dict]:
    """Questions with the answer among answers to others."""
    draw, pool, rows = random.Random(seed), sorted(set(answers.values())), []
    for question, answer in answers.items():
        offered = [answer, *draw.sample([other for other in pool if other != answer], CHOICES - 1)]
        draw.shuffle(offered)
        rows.append({"question": question, "choices": offered, "gold": offered.index(answer)})
    return rows


def as_question(text: str) -> str:
    return f"Question: {text.removeprefix('nq question: ')}?\nAnswer:"


def task(name: str, rows: list[dict]) -> dict:
    """A task of lm-eval: a choice, a free answer, or a text, as the rows have it."""
    config = {"task": name, "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)}, "test_split": "test"}
    if "choices" in rows[0]:
        texts = {"doc_to_text": "{{question}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
        return config | {"output_type": "multiple_choice"} | texts
    if "text" in rows[0]:
        texts = {"doc_to_text": "", "doc_to_target": "{{text}}", "metric_list": [{"metric": "bits_per_byte"}]}
        return config | {"output_type": "loglikelihood_rolling"} | texts
    return config | {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{target}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
    }


if __name__ == "__main__":
    main()
