"""How alike the edits of a batch are, and how unlike its neighbours, in each order. Nothing is edited.

    python benchmarks/ordering.py --model FOLDER --data zsre_1000.jsonl --step 100

`within` and `between` are W and B of `plan_order`, on anchors. `overlap_within` and `overlap_between` are the mean |cos| of
the keys, in whitening space, of two edits of one batch and of two batches.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import get_args

import sklearn
import torch
from peft import get_peft_model
from report import RESULTS, command, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import LEMoEConfig, plan_order, read_edits
from lemoe_hf.editing.ordering import UNBOUNDED, OrderBy
from lemoe_hf.editing.superposition import whitened_keys
from lemoe_hf.editing.tokens import tokenize_edit
from lemoe_hf.evaluation import versions


def overlaps(keys: torch.Tensor, permutation: list[int], step: int) -> tuple[float, float]:
    """Mean |cos| of the pairs of edits within batches, and of those across."""
    overlap = (keys[permutation] @ keys[permutation].T).abs()
    batch = torch.arange(len(keys)) // step
    is_pair = ~torch.eye(len(keys), dtype=torch.bool)
    is_same = batch[:, None] == batch
    return overlap[is_same & is_pair].mean().item(), overlap[~is_same].mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys")
    parser.add_argument("--num-edits", type=int, default=None, help="by default all")
    parser.add_argument("--step", type=int, default=100, help="edits of a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default=RESULTS / "ordering.json", type=Path)
    args = parser.parse_args()

    edits = read_edits(args.data)[: args.num_edits]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    model = get_peft_model(base, LEMoEConfig())
    keys = whitened_keys(model, tokenizer, [tokenize_edit(tokenizer, edit, UNBOUNDED) for edit in edits])
    rows = []
    for by in get_args(OrderBy):
        began = time.perf_counter()
        order = plan_order(edits, model, tokenizer, by, args.step, args.seed)
        seconds = time.perf_counter() - began
        within, between = overlaps(keys, order.permutation, args.step)
        measures = {
            "within": order.within,
            "between": order.between,
            "gap": order.gap,
            "overlap_within": within,
            "overlap_between": between,
        }
        rows.append({"name": by, "batches": len(order.batches), "seconds": seconds, "measures": measures})
        print(rows[-1], flush=True)
    report = {
        "command": command(),
        "num_edits": len(edits),
        "step": args.step,
        "seed": args.seed,
        "rows": rows,
        "versions": versions() | {"scikit_learn": sklearn.__version__},
    }
    write(report, args.output)


if __name__ == "__main__":
    main()
