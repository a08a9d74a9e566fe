"""A long stream of edits: what an edit costs at the beginning and at the end.

    python benchmarks/scale.py --model FOLDER --data zsre_1000.jsonl counterfact_3000.jsonl --adapter FOLDER

Resumes where it was interrupted. Seconds are those of the process, so that other work on the machine counts little.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from itertools import chain
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from report import RESULTS, command, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import LEMoEConfig, LifelongEditor, read_edits


SAVE_EVERY = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument(
        "--data", required=True, nargs="+", help="JSON lines with EasyEdit's keys, one after the other"
    )
    parser.add_argument("--adapter", required=True, help="folder to save to, one adapter for every 500 edits")
    parser.add_argument("--step", type=int, default=100, help="edits a call of `edit`")
    parser.add_argument("--output", default=RESULTS / "scale.json", type=Path)
    args = parser.parse_args()

    edits = list(chain.from_iterable(read_edits(path) for path in args.data))
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    saved = max((int(path.name) for path in Path(args.adapter).glob("[0-9]*")), default=0)
    rows = json.loads(args.output.read_text())["steps"][: saved // args.step] if saved else []
    if saved:
        model = PeftModel.from_pretrained(base, str(Path(args.adapter, str(saved))), is_trainable=True)
    else:
        model = get_peft_model(base, LEMoEConfig())
    editor = LifelongEditor(model, tokenizer)
    for first in range(saved, len(edits), args.step):
        began = time.process_time()
        result = editor.edit(edits[first : first + args.step])
        done = first + len(result)
        rows.append(
            {
                "edits": done,
                "cpu_seconds_per_edit": (time.process_time() - began) / len(result),
                "steps_per_edit": statistics.mean(record["steps"] for record in result.records),
                "prompt_tokens_per_edit": statistics.mean(
                    len(tokenizer(edit.prompt)["input_ids"]) for edit in edits[first:done]
                ),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
        print(rows[-1], flush=True)
        fixed = {"command": command(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        write(fixed | {"steps": rows}, args.output)
        if done % SAVE_EVERY == 0 or done == len(edits):
            editor.save_pretrained(Path(args.adapter, str(done)))


if __name__ == "__main__":
    main()
