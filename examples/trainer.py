"""Edit with `Trainer`: `EditTrainer` on a list of edits, then a plain `Trainer` on `input_ids` and `labels`.

python examples/trainer.py --model models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from lemoe_hf import CommitCallback, EditCollator, EditTrainer, LEMoEConfig, LifelongEditor, read_edits


def main(model: str, output: str, epochs: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    peft_model = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LEMoEConfig(expert_dim=8))
    edits = read_edits(Path(__file__).with_name("edits.jsonl"))
    arguments = TrainingArguments(
        output,
        num_train_epochs=epochs,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )

    # A list of edits: the collator and the commit at the end come with the trainer.
    EditTrainer(peft_model, arguments, train_dataset=edits[12:15], processing_class=tokenizer).train()

    # Whatever has `input_ids` and `labels` (-100 on the prompt): `CommitCallback` freezes the expert at the end.
    batch = EditCollator(tokenizer)(edits[15:18])
    rows = [{name: tensor[i] for name, tensor in batch.items()} for i in range(3)]
    Trainer(peft_model, arguments, train_dataset=rows, callbacks=[CommitCallback()]).train()

    editor = LifelongEditor(peft_model.eval(), tokenizer)
    for edit, answer in zip(edits[12:18], editor.answers([edit.prompt for edit in edits[12:18]]), strict=True):
        print(f"expert {editor.explain(edit.prompt).expert}: {edit.prompt} {answer.strip()!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--output", default="demo-trainer", help="folder of the trainer")
    parser.add_argument("--epochs", type=int, default=30)
    main(**vars(parser.parse_args()))
