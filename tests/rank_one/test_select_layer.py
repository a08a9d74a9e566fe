"""WilKE's score, exact; what it chooses; and that it leaves no trace."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import get_peft_model
from transformers.pytorch_utils import Conv1D

from lemoe_hf import Edit, EditingError, LEMoEConfig, RankOneEditor, diagnostics, select_layer
from lemoe_hf.rank_one import select
from rank_one.wrote import EDITS, arguments, steep, weights
from tiny import SENTENCES, edited, logits, prompts_of, put_edits, tiny


PROMPTS = torch.randint(10, 300, (3, 7), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("key", ["unified", "rome"])
def test_a5_the_score_equals_brute_force_and_leaves_the_model_alone(family: str, key: str, tokenizer):
    model = steep(family)
    before, untouched = weights(model), logits(model, PROMPTS)
    found = select_layer(model, tokenizer, EDITS[:2], [0, 1, 3], arguments(key=key, gate=False), SENTENCES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    assert torch.equal(logits(model, PROMPTS), untouched)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    for update in (each for row in found.updates for each in row):
        weight = model.get_submodule(update.name).weight.double()
        change = torch.outer(update.right, update.left).double()
        new = weight + (change.T if isinstance(model.get_submodule(update.name), Conv1D) else change)
        brute = ((new - weight).norm() / weight.norm()).item()
        assert update.change == pytest.approx(brute, rel=1e-5)
        # The formula of the paper's score, by its parts.
        left = update.left.double()
        formula = update.delta * left.norm() / ((update.key.double() @ left).abs() * weight.norm())
        assert update.change == pytest.approx(formula.item(), rel=1e-5)
    assert [row["layer"] for row in found.rows] == [0, 1, 3]


def test_it_chooses_the_smallest_change_that_succeeds(tokenizer, monkeypatch):
    table = {  # layer: change and success, of each of two edits
        0: [(0.4, True), (0.2, True)],
        1: [(0.3, True), (0.4, True)],
        2: [(0.1, False), (0.4, True)],
    }

    def solved(root, layer, name, texts, *rest):
        which = 0 if "Silver" in tokenizer.decode(texts.prompts[0].ids) else 1
        change, success = table[layer][which]
        return select.Update(layer, name, *[torch.ones(1)] * 4, 1.0, change, 1.0, success, 3)

    monkeypatch.setattr(select, "solve", solved)
    settings = arguments(layer="auto", scanning_ceiling=0.75, gate=True)
    found = select_layer(steep(), tokenizer, EDITS[:2], arguments=settings, data=SENTENCES)
    assert found.layers == [1, 0]
    assert found.layer == 0  # of the two in which both succeed, medians of 0.3 and 0.35
    assert "    0     1.00  0.3000" in str(found)
    assert str(found).splitlines()[1].endswith("<-")
    ungated = select_layer(steep(), tokenizer, EDITS[:2], arguments=replace(settings, gate=False), data=SENTENCES)
    assert ungated.layers == [2, 0]
    assert ungated.layer == 2  # a median of 0.25
    table[0][1] = table[1][1] = table[2][1] = (0.1, False)
    with pytest.raises(EditingError, match=r"succeeds in none of the layers \[0, 1, 2\]"):
        select_layer(steep(), tokenizer, EDITS[:2], arguments=settings, data=SENTENCES)


def test_an_editor_edits_where_it_is_chosen(tokenizer):
    settings = arguments(layer="auto", scanning_ceiling=0.75, gate=True)
    editor = RankOneEditor(steep(), tokenizer, settings, SENTENCES)
    assert editor.layers.candidates == [0, 1, 2]
    (made,) = editor.edit(EDITS[1])
    chosen = select_layer(steep(), tokenizer, EDITS[1], arguments=settings, data=SENTENCES)
    assert made.layer == chosen.layer == chosen.layers[0]
    assert made.success


def test_adapters_play_no_part(tokenizer):
    model = edited()
    put_edits(model, prompts_of(2))
    settings = arguments(layer="auto", gate=False)
    expected = select_layer(tiny(), tokenizer, EDITS[0], [1, 2], settings, SENTENCES)
    found = select_layer(model, tokenizer, EDITS[0], [1, 2], settings, SENTENCES)
    assert [row["change"] for row in found.rows] == pytest.approx([row["change"] for row in expected.rows], rel=1e-4)


def test_its_layer_goes_into_a_config_and_auto_does_not(tokenizer):
    with pytest.raises(ValueError, match=r"select_layer\(model, tokenizer, edits\).layer"):
        LEMoEConfig(layers_to_transform="auto")
    chosen = select_layer(steep(), tokenizer, EDITS[0], arguments=arguments(layer="auto", gate=False), data=SENTENCES)
    model = get_peft_model(steep(), LEMoEConfig(layers_to_transform=chosen.layer))
    assert model.base_model.targeted_module_names == [f"model.layers.{chosen.layer}.mlp"]


def test_what_cannot_be_chosen_is_refused(tokenizer):
    assert diagnostics.select_layer is select_layer
    with pytest.raises(ValueError, match="the list is empty"):
        select_layer(steep(), tokenizer, [])
    with pytest.raises(ValueError, match="does not tell its own"):
        select_layer(steep(), tokenizer, Edit("The mayor of Port Ellen is", "Tom"))
    with pytest.raises(ValueError, match=r"asks for \[4\]"):
        select_layer(steep(), tokenizer, EDITS[0], [4])
    with pytest.raises(ValueError, match="is a mixture of experts"):
        select_layer(tiny("qwen3_moe"), tokenizer, EDITS[0])
