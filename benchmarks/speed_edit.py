"""What an edit costs, in forward passes of the base model over the edit's own tokens (F).

    python benchmarks/speed_edit.py --model FOLDER --data zsre_1000.jsonl
    python benchmarks/speed_edit.py --model FOLDER --data zsre_1000.jsonl --num-edits 40 --ablate

An edit and the F beside it are timed in turn, several times, and the median of the ratios is reported; with it the
quality that was paid for, of prompts and of rephrasings whose edit is known. `--ablate` takes one lever away at a time.
"""

from __future__ import annotations

import argparse
import statistics
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from peft import get_peft_model
from report import RESULTS, command, device_name, now, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import EditingArguments, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.editing import activations, samples
from lemoe_hf.editing import trunk as trunk_module
from lemoe_hf.editing.samples import Sample
from lemoe_hf.editing.tokens import continuation
from lemoe_hf.evaluation import teacher_forced, versions
from lemoe_hf.generation import pad_right


@torch.no_grad()
def seconds_of_forward(base, tokenizer, edits, batch_size: int) -> float:
    """F for all edits together: each batch right-padded, prompt and target, no cache kept."""
    device, seconds = base.get_input_embeddings().weight.device, 0.0
    for first in range(0, len(edits), batch_size):
        texts = [
            tokenizer(edit.prompt)["input_ids"] + continuation(tokenizer, edit.prompt, edit.target_new)
            for edit in edits[first : first + batch_size]
        ]
        ids, mask = pad_right(texts, tokenizer.pad_token_id, device)
        began = now(device)
        base(input_ids=ids, attention_mask=mask, use_cache=False)
        seconds += now(device) - began
    return seconds


@contextmanager
def replaced(owner, name: str, value):
    own = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, own)


def known_edit_generality(editor: LifelongEditor, edits) -> float:
    """Teacher-forced generality of all edits of an editor where the right one answers, whatever is asked about its subject."""
    ids, scores = [entry["id"] for entry in editor.edits()], []
    for own, edit in zip(ids, edits, strict=True):
        prompts = [prompt for prompt, _ in edit.probes("rephrase")]
        with replaced(editor.config, "relation_threshold", -1e9), editor.without(set(ids) - {own}):
            found = teacher_forced(editor.model, editor.tokenizer, prompts, [edit.target_new] * len(prompts))
        scores += [statistics.mean(found)] if found else []
    return statistics.mean(scores)


def every_prompt_is_own(prompt, target, start, expert, own=True) -> Sample:
    return Sample(prompt, target, start, expert)


# What is taken away, the arguments, and what is replaced in the package meanwhile.
ABLATIONS = [
    ("nothing", {}, []),
    ("short averages: betas of 0.9 and 0.999", {"betas": (0.9, 0.999)}, []),
    ("own prompts first", {}, [(samples, "Sample", every_prompt_is_own)]),
    ("the template's tokens run once", {}, [(activations, "SHARED_PREFIX", 10**9)]),
    ("logits left out of the frozen pass", {}, [(activations, "FIRST_COLUMN", slice(None))]),
    ("reuse of keys and values", {}, [(trunk_module, "reusable", lambda *args: (True, 0.0))]),
    ("reuse of what is frozen", {}, [(trunk_module, "reusable", lambda *args: (False, 0.0))]),
    ("contexts", {"contexts": ()}, []),
    ("each edit's own stop: 30 steps for all", {"stop_loss": 0.0, "max_steps": 30}, []),
]


def ablate(args, tokenizer, edits) -> list[dict]:
    rows = []
    for name, settings, replacements in ABLATIONS:
        base = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
        arguments = EditingArguments(**settings)
        forward = min(seconds_of_forward(base, tokenizer, edits, arguments.batch_size) for _ in range(3))
        editor = LifelongEditor(get_peft_model(base, LEMoEConfig()), tokenizer, arguments)
        editor.prepare()
        with ExitStack() as stack:
            for replacement in replacements:
                stack.enter_context(replaced(*replacement))
            began = now(torch.device(args.device))
            result = editor.edit(edits)
        measures = {
            "forwards_per_edit": (now(torch.device(args.device)) - began) / forward,
            "steps_per_edit": statistics.mean(record["steps"] for record in result.records),
            "generality_right_expert": known_edit_generality(editor, edits),
        }
        rows.append({"name": name, "measures": measures})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys, and rephrasings")
    parser.add_argument("--num-edits", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ablate", action="store_true", help="take one lever away at a time, once each")
    parser.add_argument("--output", default=None, help="by default named after the run, under benchmarks/results")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    edits = read_edits(args.data)[: args.num_edits]
    if args.ablate:
        save(args, ablate(args, tokenizer, edits), "speed_edit_ablation")
        return
    runs = {"without contexts": EditingArguments(contexts=()), "default": EditingArguments()}
    rows = []
    for name, arguments in runs.items():
        ratios, forward = [], []
        for _ in range(args.pairs):
            base = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).to(args.device)
            seconds_of_forward(base, tokenizer, edits[:8], arguments.batch_size)  # warm up
            forward.append(seconds_of_forward(base, tokenizer, edits, arguments.batch_size))
            editor = LifelongEditor(get_peft_model(base, LEMoEConfig()), tokenizer, arguments)
            editor.prepare()
            began = now(torch.device(args.device))
            result = editor.edit(edits)
            ratios.append((now(torch.device(args.device)) - began) / forward[-1])
            print(f"{name}: {ratios[-1]:.2f} F, F = {forward[-1] / len(edits):.4f} s", flush=True)
        prompts, targets = [edit.prompt for edit in edits], [edit.target_new for edit in edits]
        reliability = teacher_forced(editor.model, tokenizer, prompts, targets)
        measures = {
            "forwards_per_edit": statistics.median(ratios),
            "seconds_of_forward_per_edit": statistics.median(forward) / len(edits),
            "steps_per_edit": statistics.mean(record["steps"] for record in result.records),
            "reliability": statistics.mean(reliability),
            "generality_right_expert": known_edit_generality(editor, edits),
        }
        of_pairs = {"forwards_per_edit_of_each_pair": ratios}
        rows.append({"name": name, "arguments": vars(arguments), "measures": measures} | of_pairs)
        print(rows[-1], flush=True)
    save(args, rows, "speed_edit")


def save(args, rows: list[dict], stem: str) -> None:
    stem += "" if args.device == "cpu" else f"_{args.device}_{args.dtype}"
    report = {"command": command(), "device": device_name(args.device), "rows": rows, "versions": versions()}
    write(report, Path(args.output or RESULTS / f"{stem}.json"))


if __name__ == "__main__":
    main()
