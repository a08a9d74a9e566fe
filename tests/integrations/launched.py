"""What each of the processes of `accelerate launch` runs: `Trainer` on made-up facts, of which each sees a half."""

from __future__ import annotations

import sys

from transformers import AutoTokenizer, TrainingArguments

from facts import FACTS, learner
from lemoe_hf import EditTrainer


def main(base: str, output: str) -> None:
    model = learner(expert_dim=8)
    model.peft_config["default"].output_scale = 1.0
    arguments = TrainingArguments(
        output,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        per_device_train_batch_size=2,
        max_steps=120,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",  # so that a process sees the same half in every epoch
    )
    trainer = EditTrainer(
        model, arguments, train_dataset=FACTS[:4], processing_class=AutoTokenizer.from_pretrained(base)
    )
    assert trainer.accelerator.num_processes == 2
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
