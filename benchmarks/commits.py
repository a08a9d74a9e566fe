"""What it costs to add one edit to an adapter that holds many: committing it, routing a prompt, and taking it back.

    python benchmarks/commits.py

A random model of one layer with the hidden size of SmolLM2-135M; six anchors an edit, experts of rank 4 in bfloat16. Training
is left out: it does not depend on what is stored. Medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from peft import get_peft_model
from report import RESULTS, command, write
from transformers import LlamaConfig, LlamaForCausalLM

from lemoe_hf import LEMoEConfig
from lemoe_hf.routing.anchors import Anchor


VOCABULARY, HIDDEN, ANCHORS = 49_152, 576, 6


def made(first: int, num: int) -> tuple[list[Anchor], list[dict], list[tuple[int, tuple[int, ...]]]]:
    """Anchors, ledger entries and targets of edits that do not share their subjects."""
    generator = torch.Generator().manual_seed(first)
    tokens = torch.randint(3, VOCABULARY, (num, ANCHORS, 5), generator=generator).tolist()
    anchors, entries, targets = [], [], []
    for i, spans in enumerate(tokens, first):
        anchors += [Anchor(tuple(span), i, i, 4, 0.9, is_prompt=j == 0) for j, span in enumerate(spans)]
        edit = {"prompt": f"What is the name of number {i}?", "target_new": f"name {i}", "subject": f"number {i}"}
        entries.append({"id": i, "expert": i, "edit": edit})
        targets.append((i, (5, 6, 7)))
    return anchors, entries, targets


def committed(tuner, first: int, num: int) -> float:
    """Seconds to commit so many edits."""
    for layer in tuner.layers_of():
        layer.open_experts("default", num)
    anchors, entries, targets = made(first, num)
    began = time.perf_counter()
    tuner.commit(anchors, entries, targets=targets)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-edits", type=int, nargs="+", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--output", default=RESULTS / "commits.json", type=Path)
    args = parser.parse_args()

    sizes = {"hidden_size": HIDDEN, "intermediate_size": 4 * HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 9}
    base = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **sizes))
    tuner = get_peft_model(base, LEMoEConfig(relation_gate=False, layers_to_transform=[0])).base_model
    lead, ids, rows, done = tuner.layers_of()[0], torch.randint(3, VOCABULARY, (1, 30)), [], 0
    for num in sorted(args.num_edits):
        while done < num:
            step = min(1000, num - done)
            committed(tuner, done, step)
            done += step
        lead.anchors("default").find(ids)
        seconds, searches = [], []
        for _ in range(args.repeats):
            seconds.append(committed(tuner, done, 1))
            done += 1
            began = time.perf_counter()
            lead.anchors("default").find(ids)
            searches.append(time.perf_counter() - began)
        began = time.perf_counter()
        tuner.remove_edit(done - 1)
        undone = time.perf_counter() - began
        done -= 1
        rows.append(
            {
                "edits": num,
                "commit_ms": 1000 * statistics.median(seconds),
                "commit_most_ms": 1000 * max(seconds),
                "search_ms": 1000 * statistics.median(searches),
                "undo_ms": 1000 * undone,
            }
        )
        print(rows[-1], flush=True)
    write({"command": command(), "torch": torch.__version__, "rows": rows}, args.output)


if __name__ == "__main__":
    main()
