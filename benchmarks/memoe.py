"""MEMoE: one batch of edits and several one after the other, as published and as changed here, with and without the anchor.

    python benchmarks/memoe.py --model FOLDER --data zsre_1000.jsonl --work FOLDER --variants "default, one batch"

Of every variant: reliability, generality and locality, teacher-forced and by free generation, and `same_expert`: the share of
edits whose rephrasing and own prompt are sent to the same expert where the answer begins. By chance that is `same_by_chance`,
of pairs of prompts of different edits: a gate that sends everything to one expert agrees with itself. What is done is kept in
`--work`, and the same command goes on with the variants that are left.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import combinations
from pathlib import Path

import torch
from lifelong import AT_ONCE, without_edited_neighbours
from peft import get_peft_model
from report import RESULTS, command, log_progress, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, EditEvaluator, LifelongEditor, MEMoEConfig, read_edits
from lemoe_hf.evaluation import versions


# Whether as published, whether in several batches, and what is changed.
VARIANTS: dict[str, tuple[bool, bool, dict]] = {
    "paper, one batch": (True, False, {}),
    "paper, several batches": (True, True, {}),
    "paper without the anchor, one batch": (True, False, {"use_anchor": False}),
    "default, one batch": (False, False, {}),
    "default, several batches": (False, True, {}),
    "default without replay, several batches": (False, True, {"replay": 0}),
    "default without the anchor, one batch": (False, False, {"use_anchor": False}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--first", type=int, default=0, help="of the records, where the edits begin")
    parser.add_argument("--num-edits", type=int, default=100)
    parser.add_argument("--step", type=int, default=10, help="edits of a batch, where there are several")
    parser.add_argument("--name", default="memoe", help="of the result")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    log_progress()
    edits = read_edits(args.data)[args.first : args.first + args.num_edits]
    for variant in args.variants:
        done = args.work / f"{variant.replace(' ', '_')}.json"
        if not done.exists():
            done.write_text(json.dumps(run(args.model, edits, variant, args.step)))
    rows = [json.loads(path.read_text()) for path in args.work.glob("*.json")]
    rows.sort(key=lambda row: list(VARIANTS).index(row["name"]))
    report = {"command": command(), "num_edits": len(edits), "rows": rows, "versions": versions()}
    write(report, RESULTS / f"{args.name}.json")


def run(name: str, edits: list[Edit], variant: str, step: int) -> dict:
    """Make all edits in one variant, and measure them."""
    is_paper, in_steps, changes = VARIANTS[variant]
    tokenizer = AutoTokenizer.from_pretrained(name)
    base = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    config = MEMoEConfig.paper(**changes) if is_paper else MEMoEConfig(**changes)
    editor = LifelongEditor(get_peft_model(base, config), tokenizer)
    editor.prepare()
    size, began, log = step if in_steps else len(edits), time.process_time(), []
    for first in range(0, len(edits), size):
        records = editor.edit(edits[first : first + size]).records
        log.append({"passes": records[0]["steps"], "loss": statistics.mean(record["loss"] for record in records)})
        print(variant, json.dumps(log[-1]), flush=True)
    seconds = (time.process_time() - began) / len(edits)
    measures = EditEvaluator(without_edited_neighbours(edits, edits), AT_ONCE)(editor.model.eval(), tokenizer)
    row = {"name": variant, "changes": changes, "measures": measures | agreement(editor, edits)}
    print(variant, json.dumps(row["measures"]), flush=True)
    return row | {"batches": log, "cpu_seconds_per_edit": seconds, "arguments": vars(editor.arguments)}


def agreement(editor: LifelongEditor, edits: list[Edit]) -> dict[str, float]:
    """How often an edit's prompt and its rephrasing are sent to the same expert, of those that the mixture acts on."""
    of_prompts = [expert_of(editor, edit.prompt) for edit in edits]
    rephrased = [(i, prompt) for i, edit in enumerate(edits) for prompt, _ in edit.probes("rephrase")]
    pairs = [(of_prompts[i], expert_of(editor, prompt)) for i, prompt in rephrased]
    same = [float(one == other) for one, other in pairs if one is not None and other is not None]
    acting = [expert for expert in of_prompts if expert is not None]
    by_chance = statistics.mean(float(one == other) for one, other in combinations(acting, 2))
    most_used = max(acting.count(expert) for expert in set(acting)) / len(acting)
    return {"same_expert": statistics.mean(same), "same_by_chance": by_chance, "most_used_expert": most_used}


@torch.no_grad()
def expert_of(editor: LifelongEditor, prompt: str) -> int | None:
    """The expert with the highest gate at the last token of a prompt; `None` where the base model answers."""
    layer, seen = editor.tuner.layers_of(editor.adapter_name)[0], []
    gate = layer.memoe_gate[editor.adapter_name]
    handle = gate.register_forward_hook(lambda module, args, output: seen.append(int(output[0, -1].argmax())))
    editor.answers([prompt.rstrip()], 1)
    handle.remove()
    return seen[0] if seen else None


if __name__ == "__main__":
    main()
