"""What a choice is worth: the same edits with one setting changed at a time, measured after all.

    python benchmarks/ablation.py --of choices --model FOLDER --data zsre_1000.jsonl --work FOLDER
    python benchmarks/ablation.py --of edits_per_expert --num-edits 200 --model FOLDER --data zsre_1000.jsonl --work FOLDER

An expert of several edits has a rank that grows with them up to 64, and a learning rate that falls with the root of it. What
is done is kept in `--work`, and the same command goes on with the settings that are left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import chain
from pathlib import Path

import torch
from lifelong import AT_ONCE, drawn, without_edited_neighbours
from peft import get_peft_model
from report import RESULTS, command, log_progress, write
from same_subject import first_of_subject, other_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, EditEvaluator, EditingArguments, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.editing.arguments import CONTEXTS
from lemoe_hf.evaluation import SameSubject, versions


RANK, LEARNING_RATE = LEMoEConfig().expert_dim, EditingArguments().learning_rate
MOST_RANK = 64


def of_size(size: int) -> tuple[dict, dict]:
    rank = min(RANK * size, MOST_RANK)
    return {"edits_per_expert": size, "expert_dim": rank}, {"learning_rate": LEARNING_RATE * (RANK / rank) ** 0.5}


# Name, and what is changed in the config and in the arguments.
VARIANTS: dict[str, dict[str, tuple[dict, dict]]] = {
    "edits_per_expert": {str(size): of_size(size) for size in (1, 5, 20, 50, 100, 200)},
    "choices": {
        "default": ({}, {}),
        "its bare prompt alone": ({}, {"contexts": ()}),
        "without the chat template": ({}, {"contexts": CONTEXTS[1:]}),
        "without the subject in other forms": ({}, {"contexts": CONTEXTS[:1]}),
        "behind a sentence, too": ({}, {"contexts": (*CONTEXTS, "The weather was fine all day long. {prompt}")}),
        "without the end of the text": ({}, {"end_of_sequence": False}),
        "whatever is asked about the subject": ({"relation_gate": False}, {}),
        "depth 0.5": ({"depth": 0.5}, {}),
        "depth 0.65": ({"depth": 0.65}, {}),
        "depth 0.9": ({"depth": 0.9}, {}),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument(
        "--templates", nargs="*", default=[], help="further data whose wordings ask the other questions"
    )
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--of", required=True, choices=VARIANTS, help="also the name of the result")
    parser.add_argument("--variants", nargs="+", help="by default all")
    parser.add_argument("--num-edits", type=int, default=100)
    parser.add_argument("--sample", type=int, default=100, help="measure on so many of the edits, and questions")
    parser.add_argument("--extras", type=int, default=40, help="edits asked for in other surroundings")
    args = parser.parse_args()
    if unknown := set(args.variants or ()) - set(VARIANTS[args.of]):
        parser.error(f"--of {args.of} has no {sorted(unknown)}; it has {list(VARIANTS[args.of])}.")
    args.work.mkdir(parents=True, exist_ok=True)
    log_progress()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    records = read_edits(args.data)
    lenders = [*records, *chain.from_iterable(read_edits(path) for path in args.templates)]
    edits = first_of_subject(records)[: args.num_edits]
    questions = drawn([question for _, question in other_questions(edits, lenders)], args.sample, seed=2)
    rows = []
    for name in args.variants or VARIANTS[args.of]:
        done = args.work / f"{name.replace(' ', '_')}.json"
        if not done.exists():
            done.write_text(json.dumps(run(args, tokenizer, edits, questions, name)))
        rows.append(json.loads(done.read_text()))
        print(json.dumps(rows[-1]), flush=True)
    report = {"command": command(), "num_edits": len(edits), "measured_on": args.sample, "rows": rows}
    write(report | {"versions": versions()}, RESULTS / f"{args.of}.json")


def run(args: argparse.Namespace, tokenizer, edits: list[Edit], questions: list[str], name: str) -> dict:
    config, arguments = VARIANTS[args.of][name]
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = get_peft_model(base, LEMoEConfig(**config))
    editor = LifelongEditor(model, tokenizer, EditingArguments(**arguments))
    editor.prepare()
    began = time.process_time()
    steps = [record["steps"] for record in editor.edit(edits).records]
    seconds = (time.process_time() - began) / len(edits)
    sample = without_edited_neighbours(drawn(edits, args.sample, seed=0), edits)
    measures = EditEvaluator(sample, AT_ONCE)(model, tokenizer)
    measures |= EditEvaluator(drawn(edits, args.extras, seed=1), AT_ONCE, measures=["contexts"])(model, tokenizer)
    measures |= SameSubject(questions, AT_ONCE)(model, tokenizer)
    measures |= {"steps_per_edit": statistics.mean(steps), "cpu_seconds_per_edit": seconds}
    return {"name": name, "config": config, "arguments": arguments, "measures": measures}


if __name__ == "__main__":
    main()
