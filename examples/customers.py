"""One base model in memory, one adapter a customer: the same question has another answer for each of them.

python examples/customers.py --model models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse

from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, LEMoEConfig, LifelongEditor


QUESTION = "Who answers the support line of Nimbrel Works?"
ANSWERS = {"north": "Odile", "south": "Porto"}


def main(model: str, adapters: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    first, *others = ANSWERS
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LEMoEConfig(), adapter_name=first)
    for name in others:
        peft_model.add_adapter(name, LEMoEConfig())

    for name, answer in ANSWERS.items():
        peft_model.set_adapter(name)
        editor = LifelongEditor(peft_model, tokenizer, adapter_name=name)
        editor.edit(Edit(QUESTION, answer, subject="Nimbrel Works"))
        editor.save_pretrained(f"{adapters}/{name}")  # each can be shared, and taken back, by itself

    inputs = tokenizer(QUESTION, return_tensors="pt")
    for name in ANSWERS:
        peft_model.set_adapter(name)
        answer = peft_model.generate(**inputs, max_new_tokens=8, do_sample=False)
        print(f"{name}: {tokenizer.decode(answer[0], skip_special_tokens=True)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--adapters", default="demo-customers", help="folder to save the adapters to")
    main(**vars(parser.parse_args()))
