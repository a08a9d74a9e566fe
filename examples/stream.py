"""Edit from a stream: a `datasets.IterableDataset` that is never in memory as a whole, saved after every few edits.

python examples/stream.py --model models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import load_dataset
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import LEMoEConfig, LifelongEditor, read_edits


BATCH = 5


def main(model: str, adapter: str, limit: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LEMoEConfig())
    editor = LifelongEditor(peft_model, tokenizer)

    # Any data set with the keys of a public benchmark will do; `read_edits` lists them.
    file = str(Path(__file__).with_name("edits.jsonl"))
    stream = load_dataset("json", data_files=file, split="train", streaming=True).take(limit)
    for columns in stream.iter(batch_size=BATCH):
        records = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        result = editor.edit(read_edits(records))
        editor.save_pretrained(adapter)  # a crash costs at most the edits of one batch
        print(f"{len(result)} edits in {result.seconds:.1f} s, {len(editor.edits())} in all")

    first = editor.edits()[0]["edit"]
    print(f"the first edit still holds: {first['prompt']} {editor.answers([first['prompt']])[0].strip()!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", default="demo-stream", help="folder to save the adapter to")
    parser.add_argument("--limit", type=int, default=15, help="edits to take from the stream")
    main(**vars(parser.parse_args()))
