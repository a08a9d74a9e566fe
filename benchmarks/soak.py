"""Threads that generate while one edits and undoes, against what a single thread gets.

    python benchmarks/soak.py --tokenizer FOLDER --minutes 10

A tiny random model with steep logits, which learns a made-up fact in a tenth of a second. A number of edits is never touched:
their prompts, and prompts that no edit is about, must be answered as they were before, token for token, by every thread at
any time. Meanwhile one thread makes edits, makes them anew with other targets, takes them back, and saves.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import torch
from peft import get_peft_model
from report import RESULTS, command, write
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lemoe_hf import Edit, EditingArguments, LEMoEConfig, LifelongEditor


NAMES = ["Zembla", "Quorvex", "Ulmen", "Port Ellen", "Ardis", "Vonda", "Kelmar", "Tessin", "Orlo", "Brannock"]


def facts(prefix: str, targets: str) -> list[Edit]:
    return [
        Edit(f"The capital of {prefix} {name} is", f"{targets}{i}", subject=f"{prefix} {name}")
        for i, name in enumerate(NAMES)
    ]


def answer(editor: LifelongEditor, prompt: str) -> list[int]:
    ids = torch.tensor([editor.tokenizer(prompt)["input_ids"]])
    text = editor.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    return text[0, ids.shape[1] :].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="folder of any tokenizer")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--output", default=RESULTS / "soak.json", type=Path)
    args = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=None, pad_token_id=0, **sizes)).eval()
    base.get_output_embeddings().weight.data *= 4
    model = get_peft_model(base, LEMoEConfig(relation_gate=False))
    editor = LifelongEditor(model, tokenizer, EditingArguments(contexts=()))
    kept = facts("Old", "v")
    editor.edit(kept)
    prompts = [*(edit.prompt for edit in kept), "Where does the train stop?", "two and two make", "My sister bought a"]
    expected = {prompt: answer(editor, prompt) for prompt in prompts}
    ends, counts, failures = time.monotonic() + 60 * args.minutes, Counter(), []

    def read(seed: int) -> None:
        draw = random.Random(seed)
        while time.monotonic() < ends:
            prompt = draw.choice(prompts)
            try:
                is_right = answer(editor, prompt) == expected[prompt]
                counts["right" if is_right else "wrong"] += 1
            except Exception as error:
                counts["raised"] += 1
                failures.append(repr(error)[:200])

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(args.threads)]
    for thread in threads:
        thread.start()
    draw = random.Random(99)
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < ends:
            ids = editor.edit(facts("New", draw.choice("abc"))[: draw.randint(1, 4)]).ids
            counts["edits"] += len(ids)
            for edit_id in ids:
                editor.undo(edit_id)
                counts["undone"] += 1
            editor.save_pretrained(folder)
            counts["saved"] += 1
    for thread in threads:
        thread.join()
    counts["right at the end"] = sum(answer(editor, prompt) == expected[prompt] for prompt in prompts)
    report = {"command": command(), "threads": args.threads, "minutes": args.minutes, "prompts": len(prompts)}
    write(report | {"counts": dict(counts), "failures": failures[:20]}, args.output)
    print(counts)


if __name__ == "__main__":
    main()
