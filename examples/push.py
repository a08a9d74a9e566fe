"""Share an adapter on the Hub, go on editing, and load what it was at an earlier revision.

Needs a token (`hf auth login` or HF_TOKEN). `HF_ENDPOINT` tells of another Hub than huggingface.co.

python examples/push.py --model HuggingFaceTB/SmolLM2-135M-Instruct --repo me/my-edits
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import LEMoEConfig, LifelongEditor, read_edits


def main(model: str, repo: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LEMoEConfig())
    editor = LifelongEditor(peft_model, tokenizer)
    edits = read_edits(Path(__file__).with_name("edits.jsonl"))[12:14]

    revisions = []
    for edit in edits:
        editor.edit(edit)
        revisions.append(editor.push_to_hub(repo).oid)  # push_edits=False keeps the texts of the edits back

    for revision in revisions:
        base = AutoModelForCausalLM.from_pretrained(model)
        loaded = LifelongEditor(PeftModel.from_pretrained(base, repo, revision=revision), tokenizer)
        answers = [text.strip() for text in loaded.answers([edit.prompt for edit in edits])]
        print(f"{repo}@{revision[:7]}: {len(loaded.edits())} edits, answers {answers}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--repo", required=True, help="repository on the Hub, made if need be")
    main(**vars(parser.parse_args()))
