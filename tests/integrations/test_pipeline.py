"""`pipeline("text-generation")` answers with the edits, however the adapter got into the model."""

from __future__ import annotations

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, pipeline

from facts import FACTS, UNRELATED, targets
from tiny import PAD


PROMPTS = [fact.prompt for fact in FACTS[:2]]


def peft_model(base_folder, adapter_folder):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), adapter_folder)


def native_model(base_folder, adapter_folder):
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    model.load_adapter(adapter_folder)
    return model


def folder_of_the_adapter(base_folder, adapter_folder):
    return str(adapter_folder)


def answers(pipe, prompts: list[str], **options) -> list[str]:
    settings = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False, "pad_token_id": PAD}
    return [rows[0]["generated_text"].strip() for rows in pipe(prompts, **settings | options)]


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("load", [peft_model, native_model, folder_of_the_adapter])
def test_a_pipeline_gives_the_answers_of_the_editor(load, batch_size, base_folder, adapter_folder, tokenizer, editor):
    pipe = pipeline("text-generation", model=load(base_folder, adapter_folder), tokenizer=tokenizer)
    base = pipeline("text-generation", model=str(base_folder), tokenizer=tokenizer)
    found = answers(pipe, [*PROMPTS, *UNRELATED], batch_size=batch_size)
    assert found[:2] == targets(FACTS[:2])
    assert found[2:] == answers(base, UNRELATED)
    assert answers(base, PROMPTS) != found[:2]
