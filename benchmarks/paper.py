"""The published setting, its three hazards, and which change repairs what: one run for each variant.

    python benchmarks/paper.py --model FOLDER --data zsre_1000.jsonl --variants published --work FOLDER

Every variant fills `--experts` experts, one after the other, with as many edits each. `batches` tells, after each of them and
for every batch so far, which share of its prompts is routed to its own expert, with what mean gate, and how reliable its edits
are:

- dilution: in a softmax over more experts the gate of an old one is smaller, although it is still chosen;
- drift: a projection that keeps training moves old prompts to other experts;
- starvation: the edits of a batch pass an old expert in training, and its own one learns nothing.

The number of steps is not published, and neither is their size; here it is `--passes` over the batch, in steps of 32 edits, at
a learning rate (`--learning-rate`) at which the first batch is learned in so many. What is done is kept in `--work`, and the
same command goes on with the variants that are left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from lifelong import AT_ONCE, drawn, without_edited_neighbours
from peft import PeftModel, get_peft_model
from report import RESULTS, command, log_progress, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, EditEvaluator, EditingArguments, LEMoEConfig, LifelongEditor, plan_order, read_edits
from lemoe_hf.editing.explanation import looked_at
from lemoe_hf.evaluation import teacher_forced, versions


FORCED = {"train_route": "forced", "router_loss": 1.0}
REPAIRED = FORCED | {"gate_value": "one", "projection": "shared_frozen", "router_replay": True}
# Order of the edits, and what is changed in `LEMoEConfig.paper()`.
VARIANTS: dict[str, tuple[str, dict]] = {
    "published": ("kmeans", {}),
    "without k-means": ("none", {}),
    "dilution off": ("kmeans", {"gate_value": "one"}),
    "drift off": ("kmeans", {"projection": "shared_frozen"}),
    "starvation off": ("kmeans", FORCED),
    "all three off": ("kmeans", REPAIRED),
    "all three off without k-means": ("none", REPAIRED),
    "all three off by hierarchical clusters": ("hierarchical", REPAIRED),
    "all three off by superposition": ("superposition", REPAIRED),
    "all three off with deferral": ("kmeans", REPAIRED | {"deferral": True}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--num-edits", type=int, default=1000)
    parser.add_argument("--experts", type=int, default=5)
    parser.add_argument("--passes", type=int, default=15)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--sample", type=int, default=200, help="measure on so many of the edits, drawn at random")
    parser.add_argument("--per-batch", type=int, default=40, help="prompts of each batch that are followed")
    parser.add_argument("--name", default="paper", help="of the result")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    log_progress()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    edits = read_edits(args.data)[: args.num_edits]
    for variant in args.variants:
        done = args.work / f"{variant.replace(' ', '_')}.json"
        if not done.exists():
            done.write_text(json.dumps(run(args, tokenizer, edits, variant)))
    rows = [json.loads(path.read_text()) for path in args.work.glob("*.json")]
    rows.sort(key=lambda row: list(VARIANTS).index(row["name"]))
    report = {
        "command": command(),
        "num_edits": len(edits),
        "experts": args.experts,
        "measured_on": args.sample,
        "arguments": vars(arguments_of(args)),
        "rows": rows,
        "versions": versions(),
    }
    write(report, RESULTS / f"{args.name}.json")


def arguments_of(args: argparse.Namespace) -> EditingArguments:
    return replace(EditingArguments.paper(), learning_rate=args.learning_rate, max_steps=args.passes)


def run(args: argparse.Namespace, tokenizer, edits: list[Edit], variant: str) -> dict:
    """Make all edits in one variant, following every batch, and measure them."""
    order, changes = VARIANTS[variant]
    size = len(edits) // args.experts
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = get_peft_model(base, LEMoEConfig.paper(edits_per_expert=size, **changes))
    editor = LifelongEditor(model, tokenizer, arguments_of(args))
    batches = plan_order(edits, model, tokenizer, order, size).batches
    followed, log = [drawn(batch, args.per_batch, seed=4) for batch in batches], []
    began = time.process_time()
    for number, batch in enumerate(batches):
        result = editor.edit(batch)
        log.append({"loss": result.records[0]["loss"], "steps": result.records[0]["steps"]})
        log[-1]["batches"] = [state(editor, prompts, expert) for expert, prompts in enumerate(followed[: number + 1])]
        print(variant, json.dumps(log[-1]), flush=True)
    seconds = (time.process_time() - began) / len(edits)
    sample = without_edited_neighbours(drawn(edits, args.sample, seed=0), edits)
    measures = EditEvaluator(sample, AT_ONCE)(model, tokenizer)
    measures |= EditEvaluator(sample, AT_ONCE, measures=["routing"])(model, tokenizer)
    print(variant, json.dumps(measures), flush=True)
    first, last = log[-1]["batches"][0], log[-1]["batches"][-1]
    hazards = {
        "first_batch_reaches_it": first["reach_it"],
        "first_batch_gate": first["gate"],
        "first_batch_reliability_then": log[0]["batches"][0]["reliability"],
        "first_batch_reliability": first["reliability"],
        "last_batch_reliability": last["reliability"],
    }
    row = {"name": variant, "order": order, "changes": changes, "measures": measures | hazards}
    return row | {"batches": log, "cpu_seconds_per_edit": seconds}


def state(editor: LifelongEditor, edits: list[Edit], expert: int) -> dict[str, float]:
    """Of some edits of an expert: whether their prompts reach it, with which gate, and how reliable they are."""
    seen = looked_at(editor, [editor.tokenizer(edit.prompt.rstrip())["input_ids"] for edit in edits])
    mixed = [
        {} if text.mixed is None else dict(zip(text.mixed.experts, text.mixed.gates, strict=True)) for text, _ in seen
    ]
    gates = [of_text[expert] for of_text in mixed if of_text.get(expert, 0.0) > 0]
    model: PeftModel = editor.model
    right = teacher_forced(
        model, editor.tokenizer, [edit.prompt for edit in edits], [edit.target_new for edit in edits]
    )
    return {
        "reach_it": len(gates) / len(edits),
        "gate": statistics.mean(gates) if gates else 0.0,
        "reliability": statistics.mean(right),
    }


if __name__ == "__main__":
    main()
