"""Measure an edited model and write the figures to its card.

python examples/evaluate.py --model models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import EditEvaluator, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.card import write_figures


def main(model: str, adapter: str, limit: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LEMoEConfig())
    editor = LifelongEditor(peft_model, tokenizer)
    edits = read_edits(Path(__file__).with_name("edits.jsonl"))[:limit]

    evaluator = EditEvaluator(edits, measures=["reliability", "generality", "locality", "routing"])
    before = evaluator(peft_model, tokenizer)
    editor.edit(edits)
    report = evaluator.report(peft_model, tokenizer, edits_made=len(editor.edits()))

    table = Table("measure", "before", "after", title=f"{report['num_edits']} edits")
    for name, value in report["measures"].items():
        table.add_row(name, f"{before[name]:.3f}", f"{value:.3f}")
    Console(width=100).print(table)

    editor.save_pretrained(adapter)
    write_figures(Path(adapter), report)  # as `lemoe evaluate` does; the Hub shows them as results
    print(f"the card is {adapter}/README.md")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", default="demo-evaluate", help="folder to save the adapter to")
    parser.add_argument("--limit", type=int, default=12, help="edits to make")
    main(**vars(parser.parse_args()))
