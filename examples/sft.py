"""Edit with TRL: `SFTTrainer` takes `LEMoEConfig` as any `peft_config`. `pip install lemoe_hf[examples]`

python examples/sft.py --model models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from lemoe_hf import CommitCallback, LEMoEConfig, LifelongEditor, read_edits


def main(model: str, output: str, epochs: int) -> None:
    edits = read_edits(Path(__file__).with_name("edits.jsonl"))[12:15]
    # With `prompt` and `completion` the loss is of the completion alone, and the prompt is what the edit is found by.
    rows = [{"prompt": edit.prompt, "completion": f" {edit.target_new}"} for edit in edits]
    arguments = SFTConfig(
        output,
        num_train_epochs=epochs,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        bf16=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        peft_config=LEMoEConfig(expert_dim=8),
        callbacks=[CommitCallback()],
    )
    trainer.train()
    trainer.save_model()

    editor = LifelongEditor(trainer.model.eval(), trainer.processing_class)
    for edit, answer in zip(edits, editor.answers([edit.prompt for edit in edits]), strict=True):
        print(f"{edit.prompt} {answer.strip()!r}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--output", default="demo-sft", help="folder of the trainer")
    parser.add_argument("--epochs", type=int, default=30)
    main(**vars(parser.parse_args()))
