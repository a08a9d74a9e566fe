"""Rows that hold several texts or several turns: one edit a prompt, learned as when alone, and none twice."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import get_peft_model
from transformers import DataCollatorForLanguageModeling, DataCollatorWithFlattening, Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from facts import FACTS, learner, targets
from lemoe_hf import CommitCallback, EditCollator, LEMoEConfig, LifelongEditor


TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'U: ' + message['content'] + '\n' }}"
    "{% else %}{{ 'A:' }}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'A:' }}{% endif %}"
)
PROMPTS = [fact.prompt for fact in FACTS[:3]]


def sft(tokenizer, folder, rows, epochs=60, **settings) -> SFTTrainer:
    defaults = {
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "num_train_epochs": epochs,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
    }
    trainer = SFTTrainer(
        learner().unload(),
        SFTConfig(str(folder), **defaults | settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=LEMoEConfig(relation_gate=False, expert_dim=8, output_scale=1.0),
        callbacks=[CommitCallback()],
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "settings",
    [
        {"packing": True, "max_length": 128},
        {"padding_free": True, "max_length": None},
    ],
    ids=["packing", "padding free"],
)
@pytest.mark.filterwarnings("ignore")
def test_packed_rows_are_as_many_edits_as_they_hold_prompts(tokenizer, tmp_path, settings):
    rows = [{"prompt": fact.prompt, "completion": f" {fact.target_new}"} for fact in FACTS[:3]]
    editor = LifelongEditor(sft(tokenizer, tmp_path, rows, **settings).model.eval(), tokenizer)
    assert sorted(entry["edit"]["prompt"] for entry in editor.edits()) == sorted(PROMPTS)
    assert [text.strip() for text in editor.answers(PROMPTS, 10)] == targets(FACTS[:3])


@pytest.mark.filterwarnings("ignore")
def test_every_turn_of_a_conversation_is_an_edit(tokenizer, tmp_path):
    tokenizer.chat_template = TEMPLATE
    turns = [
        {"role": role, "content": text}
        for fact in FACTS[:2]
        for role, text in (("user", fact.prompt), ("assistant", fact.target_new))
    ]
    trainer = sft(tokenizer, tmp_path, [{"messages": turns}], epochs=120, assistant_only_loss=True)
    editor = LifelongEditor(trainer.model.eval(), tokenizer)
    assert len(editor.edits()) == 2
    for num, fact in enumerate(FACTS[:2]):
        ids = tokenizer.apply_chat_template(turns[: 2 * num + 1], add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        text = editor.model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False, pad_token_id=0)
        assert tokenizer.decode(text[0, len(ids) :], skip_special_tokens=True).strip() == fact.target_new


def test_a_loop_of_ones_own_on_flattened_rows(tokenizer):
    """And it learns what it learns from padded rows."""
    losses = {}
    rows = EditCollator(tokenizer)(FACTS[:3])
    flat = DataCollatorWithFlattening(return_position_ids=True)(
        [
            {"input_ids": ids[mask.bool()].tolist(), "labels": labels[mask.bool()].tolist()}
            for ids, mask, labels in zip(rows["input_ids"], rows["attention_mask"], rows["labels"], strict=True)
        ]
    )
    for name, batch in (("padded", rows), ("flattened", flat)):
        model = learner(expert_dim=8, output_scale=1.0).train()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=0.05)
        losses[name] = []
        for _ in range(5):
            loss = model(**batch, use_cache=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[name].append(loss.item())
        prompts = [tokenizer.decode(entry["prompt_ids"]) for entry in model.base_model.ledger()]
        assert prompts == PROMPTS
    assert losses["padded"] == pytest.approx(losses["flattened"], rel=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_texts_without_prompts_are_told_of(tokenizer, tmp_path):
    """As of language modelling: every token is a label, and nothing could be found again."""
    model = get_peft_model(learner().unload(), LEMoEConfig(relation_gate=False, output_scale=1.0))
    rows = [{"input_ids": tokenizer(f"{fact.prompt} {fact.target_new}")["input_ids"]} for fact in FACTS[:3]]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
    trainer = Trainer(model, arguments, train_dataset=rows, data_collator=collator, callbacks=[CommitCallback()])
    with pytest.warns(UserWarning, match="labels and no prompt in front of them.*label -100"):
        trainer.train()
    assert model.base_model.ledger() == []
