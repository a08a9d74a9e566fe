"""What trials have broken, each by its right value. The bypass is low: keys and values above it tell where an edit acted."""

from __future__ import annotations

import pytest
import torch
from transformers import StaticCache

from facts import FACTS, UNRELATED, editor_for
from lemoe_hf import Edit, LifelongEditor


@pytest.fixture(scope="module")
def editor(tokenizer) -> LifelongEditor:
    editor = editor_for(tokenizer, layers_to_transform=[1])
    editor.edit(FACTS)
    editor.model.eval()
    return editor


def generated(editor: LifelongEditor, batch, **options) -> torch.Tensor:
    defaults = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": editor.tokenizer.pad_token_id}
    return editor.model.generate(**batch, **(defaults | options))


def test_padded_rows_with_a_static_cache(editor):
    """`generate` numbers padding from one on, and tells of it by a mask of four dimensions."""
    batch = editor.tokenizer([FACTS[0].prompt, FACTS[1].prompt, UNRELATED[0]], return_tensors="pt", padding=True)
    static = generated(editor, batch, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, generated(editor, batch))


def test_a_second_turn_on_a_cache_that_cannot_be_cropped(editor):
    ids = editor.tokenizer(FACTS[0].prompt, return_tensors="pt")["input_ids"]
    cache = StaticCache(config=editor.model.config, max_cache_len=128)
    first = generated(editor, {"input_ids": ids}, past_key_values=cache)
    whole = torch.cat([first, editor.tokenizer(FACTS[2].prompt, return_tensors="pt")["input_ids"]], 1)
    second = generated(editor, {"input_ids": whole}, past_key_values=cache)
    assert torch.equal(second[:, : whole.shape[1]], whole)
    (text,) = cache.lemoe_texts.texts["default"]
    assert text.ids == second[0, : len(text)].tolist()
    assert text.decisions[-1].edit == 2


@torch.no_grad()
def test_arguments_without_their_names(editor):
    root = editor.model.get_base_model()
    ids = editor.tokenizer(f"{FACTS[0].prompt} {FACTS[0].target_new}", return_tensors="pt")["input_ids"]
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, :-2] = -100
    names = ["attention_mask", "position_ids", "past_key_values", "inputs_embeds", "labels"]
    by_place = root(ids, mask, None, None, None, labels)
    named = root(ids, **dict(zip(names, (mask, None, None, None, labels), strict=True)))
    assert torch.equal(by_place.loss, named.loss)
    assert torch.equal(by_place.logits, named.logits)


def test_a_question_mark_within_a_target_asks_for_nothing(tokenizer):
    edits = [
        Edit("The motto of Zembla is", "Who? Me? Yes.", subject="Zembla"),
        Edit("What is the cry of Ulmenkirch?", "Why? Because we can.", subject="Ulmenkirch"),
    ]
    editor = editor_for(tokenizer)
    editor.edit(edits)
    answers = editor.answers([edit.prompt for edit in edits], 30)
    assert [text.strip() for text in answers] == [edit.target_new for edit in edits]


def test_lengths_of_texts_without_positions_are_refused(editor):
    ids = [editor.tokenizer(text)["input_ids"] for text in (FACTS[0].prompt, UNRELATED[0])]
    lengths = torch.tensor([0, len(ids[0]), len(ids[0]) + len(ids[1])])
    with pytest.raises(ValueError, match="no `position_ids`"):
        editor.model(input_ids=torch.tensor([ids[0] + ids[1]]), cu_seq_lens_q=lengths, use_cache=False)
