"""How many edits an expert can take: the same edits in experts of more and more of them, measured after all.

    python benchmarks/edits_per_expert.py --model FOLDER --data zsre_1000.jsonl --work FOLDER

An expert's rank grows with its edits up to `--most-rank`, and its learning rate falls with the root of it. What is done is
kept in `--work`, and the same command goes on with the sizes that are left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from lifelong import AT_ONCE, drawn, without_edited_neighbours
from peft import get_peft_model
from report import RESULTS, command, log_progress, write
from same_subject import first_of_subject, other_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, EditEvaluator, EditingArguments, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.evaluation import SameSubject, versions


RANK, LEARNING_RATE = LEMoEConfig().expert_dim, EditingArguments().learning_rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--num-edits", type=int, default=200)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 5, 20, 50, 100, 200])
    parser.add_argument("--most-rank", type=int, default=64)
    parser.add_argument("--sample", type=int, default=100, help="measure on so many of the edits, and questions")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    log_progress()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    edits = first_of_subject(read_edits(args.data))[: args.num_edits]
    rows = []
    for size in args.sizes:
        done = args.work / f"{size}.json"
        if not done.exists():
            done.write_text(json.dumps(run(args, tokenizer, edits, size)))
        rows.append(json.loads(done.read_text()))
        print(json.dumps(rows[-1]), flush=True)
    report = {"command": command(), "num_edits": len(edits), "measured_on": args.sample, "rows": rows}
    write(report | {"versions": versions()}, RESULTS / "edits_per_expert.json")


def run(args: argparse.Namespace, tokenizer, edits: list[Edit], size: int) -> dict:
    rank = min(RANK * size, args.most_rank)
    arguments = EditingArguments(learning_rate=LEARNING_RATE * (RANK / rank) ** 0.5)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = get_peft_model(base, LEMoEConfig(edits_per_expert=size, expert_dim=rank))
    editor = LifelongEditor(model, tokenizer, arguments)
    editor.prepare()
    began = time.process_time()
    steps = [record["steps"] for record in editor.edit(edits).records]
    seconds = (time.process_time() - began) / len(edits)
    sample = without_edited_neighbours(drawn(edits, args.sample, seed=0), edits)
    questions = drawn([question for _, question in other_questions(edits, edits)], args.sample, seed=2)
    measures = EditEvaluator(sample, AT_ONCE)(model, tokenizer)
    measures |= SameSubject(questions, AT_ONCE)(model, tokenizer)
    return {
        "name": str(size),
        "expert_dim": rank,
        "learning_rate": arguments.learning_rate,
        "steps_per_edit": statistics.mean(steps),
        "cpu_seconds_per_edit": seconds,
        "measures": measures,
    }


if __name__ == "__main__":
    main()
