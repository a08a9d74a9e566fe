"""
Adapters of every released format load and answer.

`fixtures/format_0` is from before an edit had an end and tokens had kinds: six facts of `facts.py`, made by the editor on the
model of `learner()`, by each kind of routing. `format_1`, the same six, is from before names were found letter by letter.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from facts import FACTS, UNRELATED, learner, plain, targets
from lemoe_hf import Edit, LifelongEditor
from tiny import byte_tokenizer


FORMATS = sorted(Path(__file__).parent.glob("fixtures/format_*/*"))
PROMPTS = [fact.prompt for fact in FACTS]


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def loaded(folder: Path, tokenizer, **options) -> LifelongEditor:
    model = PeftModel.from_pretrained(learner().unload(), folder, **options).eval()
    return LifelongEditor(model, tokenizer, plain())


def test_there_are_formats():
    assert {folder.name for folder in FORMATS} == {"kv_anchor", "nearest_anchor", "relation_gate"}


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_an_adapter_answers_as_it_did(folder, tokenizer):
    editor = loaded(folder, tokenizer)
    assert [text.strip() for text in editor.answers(PROMPTS)] == targets(FACTS)
    with editor.model.disable_adapter():
        base = editor.answers(UNRELATED)
    assert editor.answers(UNRELATED) == base
    assert [entry["edit"]["target_new"] for entry in editor.edits()] == targets(FACTS)
    assert not editor.explain(PROMPTS[0]).deferred


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_an_adapter_takes_the_next_edit_and_is_saved_in_the_format_of_today(folder, tokenizer, tmp_path):
    editor = loaded(folder, tokenizer, is_trainable=True)
    editor.edit(Edit("The mayor of Aldona is", "Berg", subject="Aldona"))
    editor.undo(1)
    facts = [fact for i, fact in enumerate(FACTS) if i != 1] + [Edit("The mayor of Aldona is", "Berg")]
    for each in (editor, None):
        if each is None:
            editor.save_pretrained(tmp_path)
            each = loaded(tmp_path, tokenizer)
        assert [text.strip() for text in each.answers([fact.prompt for fact in facts])] == targets(facts)


@pytest.mark.parametrize("folder", FORMATS, ids=lambda folder: folder.name)
def test_transformers_loads_it_by_itself(folder, tokenizer, tmp_path):
    learner().unload().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    model.load_adapter(str(folder))
    prompt = tokenizer(PROMPTS[1], return_tensors="pt")
    text = model.generate(**prompt, max_new_tokens=8, do_sample=False, pad_token_id=tokenizer.pad_token_id)
    answer = tokenizer.decode(text[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert answer.strip() == FACTS[1].target_new
