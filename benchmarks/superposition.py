"""Superposition of facts in every layer, and whether it predicts what an edit does to other facts.

    python benchmarks/superposition.py --model FOLDER --data counterfact_3000.jsonl --texts TEXT_FILE

`profile` has the figures of `layer_profile` on the first edits of the data. `prediction`: some edits are made at one layer,
each alone on the base model, and the divergence of the next token behind every other fact's prompt is compared, by rank, with
|p| times the norm of what the edit's value changes by, with |p| alone, and with what `predict_interference` says. Without
`--texts`, statistics are of the model's own samples.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from report import RESULTS, command, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, RankOneArguments, RankOneEditor, read_edits
from lemoe_hf.diagnostics import layer_profile, plan_by_cost, predict_interference, superposition_report
from lemoe_hf.diagnostics.superposition import off_diagonal
from lemoe_hf.evaluation import versions
from lemoe_hf.evaluation.forced import forced_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="edits with their subjects, in any format of the benchmarks")
    parser.add_argument("--texts", default=None, type=Path, help="a text a line, to take statistics of")
    parser.add_argument("--facts", type=int, default=128, help="facts of the profile")
    parser.add_argument(
        "--layer", type=int, default=None, help="of the prediction, by default at a quarter of the depth"
    )
    parser.add_argument("--edits", type=int, default=24, help="edits of the prediction, 0 for none")
    parser.add_argument("--name", default="superposition", help="of the result")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    facts = [edit for edit in read_edits(args.data) if edit.subject][: args.facts]
    texts = None if args.texts is None else [line for line in args.texts.read_text().splitlines() if line.strip()]
    began = time.process_time()
    report = superposition_report(model, tokenizer, facts, args.layer, texts)
    seconds = time.process_time() - began
    print(report, f"\n{seconds:.1f} s of a CPU", flush=True)
    profile = layer_profile(model, tokenizer, facts, data=texts)
    for row in profile:
        print({name: round(value, 3) for name, value in row.items()}, flush=True)
    result = {
        "command": command(),
        "num_facts": len(facts),
        "report_seconds": seconds,
        "report": report.to_dict(),
        "profile": profile,
    }
    if args.edits:
        result["prediction"] = prediction(model, tokenizer, facts[: args.edits], report.layer, texts)
    write(result | {"versions": versions()}, RESULTS / f"{args.name}.json")


def prediction(model, tokenizer, edits: list[Edit], layer: int, texts: list[str] | None) -> dict:
    """Each edit alone, on the base model."""
    editor = RankOneEditor(model, tokenizer, RankOneArguments(layer=layer), data=texts)
    before, updates, changes = next_tokens(editor.model, tokenizer, edits), [], []
    for i, edit in enumerate(edits):
        began = time.process_time()
        updates += editor.edit(edit)
        seconds = time.process_time() - began
        after = next_tokens(editor.model, tokenizer, edits)
        changes.append((before.exp() * (before - after)).sum(-1))
        editor.undo()
        print(
            f"edit {i}: success {updates[-1].success}, nll {updates[-1].nll:.2f}, {seconds:.1f} s of a CPU", flush=True
        )
    assert torch.equal(next_tokens(editor.model, tokenizer, edits), before)
    change = off_diagonal(torch.stack(changes))
    found = predict_interference(model, tokenizer, edits, edits, layer, data=texts, updates=updates)
    delta = torch.tensor([update.delta for update in updates])
    said = {"p": found.p.abs(), "p_times_delta": found.p.abs() * delta[:, None], "damage": found.damage}
    order = plan_by_cost(model, tokenizer, edits, layer, data=texts, updates=updates)
    return {
        "layer": layer,
        "num_edits": len(edits),
        "success": sum(update.success for update in updates) / len(updates),
        "spearman": {name: spearman(off_diagonal(values), change) for name, values in said.items()},
        "cost_in_order": order.cost,
        "cost_as_given": order.cost_as_given,
        "worst": found.worst(),
    }


@torch.no_grad()
def next_tokens(model, tokenizer, edits: list[Edit]) -> torch.Tensor:
    """Log-probabilities of the token behind each prompt, of shape `(n, v)`."""
    prompts, targets = [edit.prompt for edit in edits], [edit.target_new for edit in edits]
    batches = forced_batches(tokenizer, prompts, targets, 32)
    rows = [
        logits[column] for batch in batches for logits, column in zip(batch.logits(model), batch.columns, strict=True)
    ]
    return torch.stack(rows).log_softmax(-1)


def spearman(a: torch.Tensor, b: torch.Tensor) -> float:
    """Correlation of ranks; of values that are equal none occur here."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (a, b)])
    return torch.corrcoef(ranks)[0, 1].item()


if __name__ == "__main__":
    main()
