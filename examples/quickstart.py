"""Correct a model, look at what changed, take one edit back, save and load.

python examples/quickstart.py --model models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import LEMoEConfig, LifelongEditor, read_edits


def main(model: str, adapter: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LEMoEConfig())
    editor = LifelongEditor(peft_model, tokenizer)

    edits = read_edits(Path(__file__).with_name("edits.jsonl"))[12:16]
    print(editor.edit(edits))  # the first edit of a base model takes minutes, once: see the README

    for prompt in (edits[1].prompt, edits[1].rephrase_prompt, edits[1].locality_prompt):
        print(editor.explain(prompt))

    editor.undo(0)  # exact: its prompt gets the base model's answer again
    print(f"after undo: {edits[0].prompt} {editor.answers([edits[0].prompt])[0]!r}")

    editor.save_pretrained(adapter)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter)
    inputs = tokenizer(edits[1].prompt, return_tensors="pt")
    answer = loaded.generate(**inputs, max_new_tokens=12, do_sample=False)
    print("loaded:", tokenizer.decode(answer[0], skip_special_tokens=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--adapter", default="demo-quickstart", help="folder to save the adapter to")
    main(**vars(parser.parse_args()))
