"""The main job on a real model: edit in batches, save, reload in a new process, generate, and look at what did not change.

python examples/demo.py --model models/SmolLM2-135M-Instruct --edits examples/edits.jsonl --adapter demo-adapter
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

from lemoe_cli.quiet import be_quiet


be_quiet()  # before what follows is imported

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
# The rephrasings of these edits avoid the words of their prompts ("the person holding the baton" for "the conductor"), which
# is the hardest there is for a decision by words: with the threshold that leaves other questions alone, 28 of 40 are answered.
TARGETS = {"free_reliability": 0.95, "free_generality": 0.65, "locality_exact": 1.0}


def texts(editor: LifelongEditor, edits: list[Edit]) -> dict[str, list[str]]:
    """Answers to every prompt, to every rephrasing and, of the base model, to every prompt."""
    answers = {
        "answers": editor.answers([edit.prompt for edit in edits]),
        "rephrased": editor.answers([edit.rephrase_prompt for edit in edits]),
    }
    with editor.model.disable_adapter():
        answers["base"] = editor.answers([edit.prompt for edit in edits])
    return answers


def dialogue(editor: LifelongEditor, edit: Edit) -> list[dict[str, str]]:
    """An edited question, another topic, and the question again: each turn with the base model's answer on its tokens."""
    turns: list[dict[str, str]] = []
    rows = []
    for question in (edit.prompt, "What is the capital of France?", edit.prompt):
        turns.append({"role": "user", "content": question})
        prompt = editor.tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        options = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": editor.tokenizer.pad_token_id}
        texts = []
        for disabled in (False, True):
            with editor.model.disable_adapter() if disabled else nullcontext():
                ids = editor.model.generate(**prompt, **options)[0, prompt["input_ids"].shape[1] :]
            texts.append(editor.tokenizer.decode(ids, skip_special_tokens=True).strip())
        rows.append({"user": question, "edited": texts[0], "base": texts[1]})
        turns.append({"role": "assistant", "content": texts[0]})
    return rows


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
    turns = dialogue(editor, edits[0])
    for turn in turns:
        console.print(
            f"user: {turn['user']}\nedited model: {turn['edited']}\nbase model, on these tokens: {turn['base']}\n"
        )
    checks = {
        "the edit answers in a dialogue, and again later": all(
            turns[i]["edited"].startswith(edits[0].target_new) for i in (0, 2)
        ),
        "another topic in between is the base model's": turns[1]["edited"] == turns[1]["base"],
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
