"""Rank-one edits: what is written is what was to be written, and comes out as LoRA."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from lemoe_hf import Edit, EditEvaluator, EditingError, RankOneArguments, RankOneEditor
from lemoe_hf.moments import Whitening, keys_of, second_moments
from lemoe_hf.rank_one.update import through, weight_of
from rank_one.wrote import EDITS, arguments, editor_of, steep, weights
from tiny import SENTENCES, logits, tiny


FAMILIES = ["llama", "gpt2", "opt", "gemma3"]
PROMPTS = torch.randint(10, 300, (3, 7), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_is_answered_and_is_a_lora_adapter(family: str, tokenizer):
    editor = editor_of(family, tokenizer)
    before = editor.answers([EDITS[0].prompt], 1)
    (update,) = editor.edit(EDITS[0])
    assert update.success
    assert update.nll < 0.5
    assert before != editor.answers([EDITS[0].prompt], 1) == [" is"]
    assert isinstance(editor.model, PeftModel)
    assert isinstance(editor.model.peft_config["default"], LoraConfig)
    scores = EditEvaluator([EDITS[0]], measures=["reliability"])(editor.model, tokenizer)
    assert scores["reliability"] == scores["free_reliability"] == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a9_one_key_throughout_is_written_exactly(family: str, tokenizer):
    editor = editor_of(family, tokenizer, key="unified")
    for edit in EDITS[:2]:
        (update,) = editor.edit(edit)
        written = through(editor.root.get_submodule(update.name), update.key)
        assert (written - update.value).norm() <= 1e-4 * update.value.norm()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a9_the_asymmetric_key_is_that_of_the_bare_prompt(family: str, tokenizer):
    editor = editor_of(family, tokenizer, key="rome")
    bare = keys_of(editor.root, tokenizer, EDITS[:1], [1])[1][0]
    (update,) = editor.edit(EDITS[0])
    torch.testing.assert_close(update.key, bare, rtol=1e-4, atol=1e-5)
    written = through(editor.root.get_submodule(update.name), bare)
    assert (written - update.value).norm() <= 1e-4 * update.value.norm()
    # The direction that is read is that of the mean over contexts, which is another.
    assert torch.nn.functional.cosine_similarity(update.left, mean_direction(editor, EDITS[0]), dim=0) > 0.9999
    assert torch.nn.functional.cosine_similarity(update.left, direction(editor, bare), dim=0) < 0.999


def direction(editor: RankOneEditor, key: torch.Tensor) -> torch.Tensor:
    return editor.layers.whitening(1).solve(key[None])[0].float()


def mean_direction(editor: RankOneEditor, edit: Edit) -> torch.Tensor:
    unified = RankOneEditor(steep(family_of(editor)), editor.tokenizer, arguments(key="unified"), data=SENTENCES)
    (update,) = unified.edit(edit)
    return direction(editor, update.key)


def family_of(editor: RankOneEditor) -> str:
    return editor.root.config.model_type


@pytest.mark.parametrize("family", FAMILIES)
def test_the_adapter_is_the_same_as_weights_written_in(family: str, tokenizer, tmp_path):
    editor = editor_of(family, tokenizer, layer="auto", scanning_ceiling=1.0, gate=False)
    editor.edit(EDITS[0], layer=1)
    editor.edit(EDITS[1:3], layer=2)
    editor.edit(EDITS[3], layer=1)
    config = editor.model.peft_config["default"]
    assert sorted(config.rank_pattern.values()) == [2, 2]
    written = steep(family)
    for row in editor._made:
        update = row[2]
        matrix = written.get_submodule(update.name)
        change = torch.outer(update.right, update.left)
        with torch.no_grad():
            matrix.weight += change.T if isinstance(matrix, Conv1D) else change
    expected = logits(written, PROMPTS)
    scale = expected.abs().max()
    assert (logits(editor.model, PROMPTS) - expected).abs().max() < 1e-4 * scale
    editor.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(steep(family), tmp_path)
    assert (logits(loaded, PROMPTS) - expected).abs().max() < 1e-4 * scale
    assert (logits(loaded.merge_and_unload(), PROMPTS) - expected).abs().max() < 1e-4 * scale
    assert (expected - logits(steep(family), PROMPTS)).abs().max() > 1e-2


def test_the_adapter_loads_in_a_process_that_knows_nothing_of_it(tokenizer, tmp_path):
    steep("llama").save_pretrained(tmp_path / "base")
    editor = RankOneEditor(
        AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tokenizer, arguments(), data=SENTENCES
    )
    editor.edit(EDITS[:2])
    editor.save_pretrained(tmp_path / "edits")
    torch.save((PROMPTS, logits(editor.model, PROMPTS)), tmp_path / "expected.pt")
    code = f"""
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
ids, expected = torch.load({str(tmp_path / "expected.pt")!r})
base = AutoModelForCausalLM.from_pretrained({str(tmp_path / "base")!r})
with torch.no_grad():
    model = PeftModel.from_pretrained(base, {str(tmp_path / "edits")!r})
    torch.testing.assert_close(model(input_ids=ids).logits, expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
assert "lemoe_hf" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "edits" / "README.md").read_text()
    assert "| This is Port Ellen | Tom | 1 |" in card
    assert "Edits in this adapter: 2" in card


def test_base_weights_are_never_written(tokenizer):
    editor = editor_of("llama", tokenizer, layer="auto", scanning_ceiling=0.75)
    before = weights(editor.root)
    untouched = logits(editor.root, PROMPTS)
    editor.edit(EDITS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(editor.model).items())
    with editor.model.disable_adapter():
        assert torch.equal(logits(editor.model, PROMPTS), untouched)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a6_changes_of_a_stream_add_up_as_the_coefficients_say(family: str, tokenizer):
    editor = editor_of(family, tokenizer, contexts=())  # then the key of an edit is that of its bare prompt
    name = editor.layers.names([1])[1]
    facts = [*EDITS, Edit("The bridge of Aldona is", "of", subject="Aldona")]
    keys = keys_of(editor.root, tokenizer, facts, [1])[1].double()
    before = weight_of(editor.root.get_submodule(name)).double()
    deltas = []
    for edit in EDITS:
        old = through(editor.root.get_submodule(name), keys[len(deltas)])
        (update,) = editor.edit(edit)
        deltas.append(update.value.double() - old)
    changed = (weight_of(editor.root.get_submodule(name)).double() - before) @ keys.T
    gram = Whitening(second_moments(steep(family), tokenizer, [1], SENTENCES)[1], 1e-2).whiten(keys)
    gram = gram @ gram.T
    p = gram / gram.diagonal()[:, None]
    torch.testing.assert_close(p.diagonal(), torch.ones(5, dtype=torch.double))
    symmetric = p * gram.diagonal()[:, None]
    torch.testing.assert_close(symmetric, symmetric.T)
    expected = torch.stack(deltas, 1) @ p[:4]
    assert (changed - expected).norm() <= 1e-4 * expected.norm()
    assert expected[:, 4].norm() > 1e-3  # a fact that nobody has edited


def test_the_last_edit_is_undone_without_a_trace(tokenizer):
    editor = editor_of("llama", tokenizer, layer="auto", scanning_ceiling=0.75, gate=False)
    untouched = logits(editor.model, PROMPTS)
    states = []
    for edit in EDITS[:3]:
        editor.edit(edit)
        states.append((logits(editor.model, PROMPTS), editor.edits()))
    for expected, told in reversed(states[:-1]):
        assert editor.undo() == []
        assert torch.equal(logits(editor.model, PROMPTS), expected)
        assert editor.edits() == told
    editor.undo()
    assert editor.model is editor.root
    assert torch.equal(logits(editor.model, PROMPTS), untouched)
    with pytest.raises(ValueError, match="There is no edit None; there are none"):
        editor.undo()


def test_an_earlier_edit_is_undone_and_the_later_still_write_their_values(tokenizer):
    editor = editor_of("llama", tokenizer)
    editor.edit(EDITS[:2])
    editor.edit(EDITS[2], layer=2)
    editor.edit(EDITS[3])
    assert editor.undo(1) == [3]  # not 0, which is earlier, nor 2, which is elsewhere
    assert [edit["id"] for edit in editor.edits()] == [0, 2, 3]
    update = editor._made[-1][2]
    written = through(editor.root.get_submodule(update.name), update.key)
    assert (written - update.value).norm() <= 1e-4 * update.value.norm()
    with pytest.raises(ValueError, match=r"no edit 1; there are \[0, 2, 3\]"):
        editor.undo(1)
    assert editor.edit(EDITS[1])[0].success
    assert editor.edits()[-1]["id"] == 4


def test_editing_goes_on_where_it_was_saved(tokenizer, tmp_path):
    editor = editor_of("gpt2", tokenizer)
    editor.edit(EDITS[:2])
    editor.save_pretrained(tmp_path)
    again = RankOneEditor.from_pretrained(steep("gpt2"), tokenizer, tmp_path, data=SENTENCES)
    assert again.edits() == editor.edits()
    assert again.arguments == editor.arguments
    torch.testing.assert_close(logits(again.model, PROMPTS), logits(editor.model, PROMPTS))
    editor.edit(EDITS[2])
    again.edit(EDITS[2])
    torch.testing.assert_close(logits(again.model, PROMPTS), logits(editor.model, PROMPTS), rtol=1e-3, atol=1e-3)
    again.undo()
    again.undo()
    assert [edit["id"] for edit in again.edits()] == [0]
    with pytest.raises(ValueError, match=r"this model has `model.layers.1.mlp.down_proj`"):
        RankOneEditor.from_pretrained(steep("llama"), tokenizer, tmp_path, data=SENTENCES)
    with pytest.raises(ValueError, match="there is no rank_one.json"):
        RankOneEditor.from_pretrained(steep("gpt2"), tokenizer, tmp_path / "nowhere", data=SENTENCES)
    (tmp_path / "rank_one.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        RankOneEditor.from_pretrained(steep("gpt2"), tokenizer, tmp_path, data=SENTENCES)


def test_statistics_of_a_layer_that_is_named_later_are_those_of_the_base_model(tokenizer):
    late = RankOneEditor(steep(), tokenizer, arguments(), data=iter(SENTENCES))
    early = editor_of("llama", tokenizer)
    early.layers.prepare([1, 3])
    for editor in (late, early):
        editor.edit(EDITS[0])
        editor.edit(EDITS[1], layer=3)
    torch.testing.assert_close(logits(late.model, PROMPTS), logits(early.model, PROMPTS))


def test_a_model_in_half_precision_is_edited(tokenizer, tmp_path):
    editor = RankOneEditor(steep().bfloat16(), tokenizer, arguments(), data=SENTENCES)
    (update,) = editor.edit(EDITS[0])
    assert update.success
    assert editor.answers([EDITS[0].prompt], 1) == [" is"]
    editor.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(steep().bfloat16(), tmp_path)
    assert torch.equal(logits(loaded, PROMPTS), logits(editor.model, PROMPTS))


def test_what_cannot_be_edited_is_refused(tokenizer):
    editor = editor_of("llama", tokenizer)
    with pytest.raises(ValueError, match="does not tell its own"):
        editor.edit([EDITS[0], Edit("The mayor of Port Ellen is", "Tom")])
    assert editor.edits() == []
    with pytest.raises(ValueError, match="the list is empty"):
        editor.edit([])
    with pytest.raises(ValueError, match="no edits to save"):
        editor.save_pretrained("nowhere")
    with pytest.raises(ValueError, match=r"`layer` asks for \[9\], but LlamaForCausalLM has 4 layers"):
        editor.edit(EDITS[0], layer=9)
    with pytest.raises(ValueError, match="is a mixture of experts"):
        RankOneEditor(tiny("qwen3_moe"), tokenizer)
    with pytest.raises(TypeError, match="needs the bare model; got a PeftModelForCausalLM"):
        RankOneEditor(get_peft_model(steep(), LoraConfig(task_type="CAUSAL_LM")), tokenizer)
    with pytest.raises(ValueError, match=r"this one has rank \d+ of 48"):
        RankOneEditor(steep(), tokenizer, arguments(ridge=0.0), data=SENTENCES[:2]).edit(EDITS[0])


def test_an_edit_that_fails_is_refused_and_those_before_it_stay(tokenizer):
    editor = editor_of("llama", tokenizer, gate=True, max_steps=30)
    hopeless = Edit("This is Port Ellen", "Norland burned in the bridge", subject="Port Ellen")
    with pytest.raises(EditingError, match=r"succeeds in none of the layers \[1\]"):
        editor.edit([EDITS[0], hopeless])
    assert [edit["prompt"] for edit in editor.edits()] == [EDITS[0].prompt]
    editor = editor_of("llama", tokenizer)
    assert not editor.edit(hopeless)[0].success


def test_the_published_settings_are_strict():
    paper = RankOneArguments.paper()
    assert (paper.layer, paper.key, paper.gate, paper.ridge) == ("auto", "rome", False, 0.0)
    assert (paper.max_steps, paper.learning_rate, paper.kl_factor, paper.norm_penalty) == (20, 0.5, 0.0625, 0.5)
    assert (paper.clamp, paper.stop_loss, paper.contexts) == (4.0, 0.05, ((5, 10), (10, 10)))
    assert paper.scanning_ceiling == 0.5
    assert RankOneArguments.paper("rome", layer=17).layer == 17
    with pytest.raises(ValueError, match="ROME edits one layer"):
        RankOneArguments.paper("rome")
    with pytest.raises(ValueError, match="WilKE chooses its layers"):
        RankOneArguments.paper("wilke", layer=3)
    with pytest.raises(ValueError, match="must be one of wilke, rome; got 'memit'"):
        RankOneArguments.paper("memit")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"key": "both"}, "`key` must be one of unified, rome; got 'both'"),
        ({"layer": -1}, "'auto' or the index of a layer, 0 or more; got -1"),
        ({"scanning_ceiling": 0}, "above 0 and at most 1; got 0"),
        ({"max_steps": 0}, "`max_steps` must be positive; got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        RankOneArguments(**settings)


def test_the_published_statistics_need_texts(tokenizer):
    with pytest.raises(ValueError, match="need texts: pass them as `data`"):
        RankOneEditor(steep(), tokenizer, RankOneArguments.paper())
