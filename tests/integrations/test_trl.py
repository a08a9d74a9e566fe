from __future__ import annotations

import pytest
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from facts import FACTS, learner, targets
from lemoe_hf import CommitCallback, LEMoEConfig, LifelongEditor


def test_sft(tokenizer, tmp_path):
    rows = Dataset.from_list([{"prompt": f.prompt, "completion": " " + f.target_new} for f in FACTS[:3]])
    args = SFTConfig(str(tmp_path), num_train_epochs=40, learning_rate=0.05, lr_scheduler_type="constant", per_device_train_batch_size=3, report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True)
    config = LEMoEConfig(relation_gate=False, expert_dtype="float32", expert_dim=8, output_scale=1.0)
    trainer = SFTTrainer(learner().unload(), args, train_dataset=rows, processing_class=tokenizer, peft_config=config, callbacks=[CommitCallback()])
    print(args.bf16, args.gradient_checkpointing)
    print(trainer.train())
    model = trainer.model.eval()
    editor = LifelongEditor(model, tokenizer)
    print(editor.edits(), editor.answers([f.prompt for f in FACTS[:3]], 10))
