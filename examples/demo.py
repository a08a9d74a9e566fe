"""The main job on a real model: edit in batches, save, reload in a new process, generate, and look at what did not change.

python examples/demo.py --model models/SmolLM2-135M-Instruct --edits examples/edits.jsonl --adapter demo-adapter
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from lemoe_hf import Edit, EditEvaluator, LEMoEConfig, LifelongEditor, read_edits


logging.set_verbosity_error()
logging.disable_progress_bar()
console = Console(width=140)
NUM_BATCHES = 4
TARGETS = {"free_reliability": 0.95, "free_generality": 0.85, "locality_exact": 1.0}


def texts(editor: LifelongEditor, edits: list[Edit]) -> dict[str, list[str]]:
    """Answers to every prompt, to every rephrasing and, of the base model, to every prompt."""
    answers = {
        "answers": editor.answers([edit.prompt for edit in edits]),
        "rephrased": editor.answers([edit.rephrase_prompt for edit in edits]),
    }
    with editor.model.disable_adapter():
        answers["base"] = editor.answers([edit.prompt for edit in edits])
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--edits", required=True)
    parser.add_argument("--adapter", required=True)
    parser.add_argument("--reload", action="store_true", help="load the adapter and print its answers as JSON")
    args = parser.parse_args()
    edits = read_edits(args.edits)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)

    if args.reload:
        editor = LifelongEditor(PeftModel.from_pretrained(base, args.adapter), tokenizer)
        print(json.dumps(texts(editor, edits)))
        return

    began = time.perf_counter()
    editor = LifelongEditor(get_peft_model(base, LEMoEConfig(base_model_name_or_path=args.model)), tokenizer)
    console.print("looking at how the base model tells questions apart; once for a base model")
    editor.prepare()
    console.print(f"{time.perf_counter() - began:.1f} s")
    before = editor.answers([edit.prompt for edit in edits])
    size = -(-len(edits) // NUM_BATCHES)
    for first in range(0, len(edits), size):
        result = editor.edit(edits[first : first + size])
        console.print(f"batch of {len(result)} edits: {result.seconds:.1f} s")
    editor.save_pretrained(args.adapter)
    measures = EditEvaluator(edits)(editor.model, tokenizer)

    console.print(f"saved to {args.adapter}; loading it in a new process")
    command = [sys.executable, __file__, "--model", args.model, "--edits", args.edits, "--adapter", args.adapter]
    reloaded = json.loads(subprocess.run([*command, "--reload"], check=True, capture_output=True, text=True).stdout)
    here = texts(editor, edits)

    table = Table(title=f"{len(edits)} edits of SmolLM2-135M-Instruct", show_lines=False)
    for name in ("prompt", "target", "before", "after", "after, asked otherwise"):
        table.add_column(name, overflow="fold")
    for edit, old, new, other in zip(edits, before, here["answers"], here["rephrased"], strict=True):
        table.add_row(edit.prompt, edit.target_new, " ".join(old.split())[:60], new.strip(), other.strip())
    console.print(table)
    checks = {
        "the same answers in the new process": reloaded == here,
        "the base model's answers under disable_adapter": here["base"] == before,
        **{f"{name} {measures[name]:.3f} >= {least}": measures[name] >= least for name, least in TARGETS.items()},
    }
    for name, holds in checks.items():
        console.print(("ok      " if holds else "FAILED  ") + name, highlight=False)
    files = sum(path.stat().st_size for path in Path(args.adapter).iterdir() if path.suffix == ".safetensors")
    console.print(f"{files / 1024 / len(edits):.1f} KB an edit on disk; {time.perf_counter() - began:.0f} s in all")
    sys.exit(not all(checks.values()))


if __name__ == "__main__":
    main()
