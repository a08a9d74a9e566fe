"""Edit a real model with records of an editing benchmark, and measure it after all edits.

    python benchmarks/zsre.py --model FOLDER --data zsre_1000.jsonl --num-edits 100 --step 10

Writes the measures, and everything needed to repeat them, to a JSON file under benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import peft
import torch
import transformers
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import lemoe_hf
from lemoe_hf import EditEvaluator, LEMoEConfig, LifelongEditor, read_edits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--num-edits", type=int, default=100)
    parser.add_argument("--step", type=int, default=10, help="edits a call of `edit`")
    parser.add_argument("--paper", action="store_true", help="the published setting")
    parser.add_argument("--output", default=None, help="by default named after the run, under benchmarks/results")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    edits = read_edits(args.data)[: args.num_edits]
    evaluate = EditEvaluator(edits)

    config = LEMoEConfig.paper() if args.paper else LEMoEConfig()
    model = get_peft_model(base, config)
    unedited = evaluate(model, tokenizer)
    print("unedited", unedited)
    editor = LifelongEditor(model, tokenizer)
    began, steps = time.perf_counter(), []
    for first in range(0, len(edits), args.step):
        result = editor.edit(edits[first : first + args.step])
        steps += [record["steps"] for record in result.records]
        print(f"{first + len(result)} edits, {result.seconds / len(result):.3f} s an edit", flush=True)
    seconds = time.perf_counter() - began
    measures = evaluate(model, tokenizer)
    print("edited", measures)

    name = f"{Path(args.data).stem}_{len(edits)}_step_{args.step}" + ("_paper" if args.paper else "")
    path = Path(args.output or Path(__file__).parent / "results" / f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "command": f"python benchmarks/zsre.py --model SmolLM2-135M-Instruct --data {Path(args.data).name} "
        f"--num-edits {len(edits)} --step {args.step}" + (" --paper" if args.paper else ""),
        "data": Path(args.data).name,
        "num_edits": len(edits),
        "edits_per_step": args.step,
        "seed": editor.arguments.seed,
        "measures": measures,
        "unedited": unedited,
        "seconds_per_edit": round(seconds / len(edits), 4),
        "steps_per_edit": sum(steps) / len(steps),
        "arguments": vars(editor.arguments),
        "versions": {
            "lemoe_hf": lemoe_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
    }
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(path)


if __name__ == "__main__":
    main()
