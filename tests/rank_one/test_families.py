"""Dense models of other families are edited, and what cannot be is refused with the reason."""

from __future__ import annotations

import pytest
from peft import PeftModel

from architectures.walk import build
from lemoe_hf import RankOneEditor
from rank_one.wrote import EDITS, arguments
from tiny import SENTENCES, logits


IDS = list(range(20, 32))


@pytest.mark.parametrize(
    "model_type", ["bert", "falcon", "gpt_neox", "gptj", "olmo2", "phi", "recurrent_gemma", "stablelm"]
)
def test_edits_of_any_family_are_lora(model_type: str, tokenizer, tmp_path):
    editor = RankOneEditor(build(model_type).eval(), tokenizer, arguments(max_steps=4, contexts=()), SENTENCES)
    editor.edit(EDITS[:2])
    expected = logits(editor.model, IDS)
    scale = expected.abs().max()
    assert (expected - logits(build(model_type).eval(), IDS)).abs().max() > 1e-5 * scale
    editor.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build(model_type).eval(), tmp_path)
    assert (logits(loaded, IDS) - expected).abs().max() < 1e-4 * scale
    assert (logits(loaded.merge_and_unload(), IDS) - expected).abs().max() < 1e-3 * scale


@pytest.mark.parametrize(
    ("model_type", "reason"),
    [
        ("beam", "PEFT puts no LoRA on"),
        ("cpmant", "puts columns of its own before a text"),
        ("mllama", "do not run on text alone"),
        ("prophetnet", "runs what it predicts beside what it reads"),
        ("falcon_mamba", "has none"),
        ("mixtral", "is a mixture of experts"),
    ],
)
def test_what_is_no_place_for_it_is_refused(model_type: str, reason: str, tokenizer):
    with pytest.raises(ValueError, match=reason):
        RankOneEditor(build(model_type).eval(), tokenizer, arguments(max_steps=4, contexts=()), SENTENCES).edit(
            EDITS[0]
        )
