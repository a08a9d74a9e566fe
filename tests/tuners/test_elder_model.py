"""The mixture of ELDER in a model: what acts where, in every way in which a text may be given."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model

from facts import FACTS, UNRELATED, plain
from lemoe_hf import ELDERConfig, LEMoEConfig, LifelongEditor
from lemoe_hf.tuners.elder.mixture import Codes, draw_allocation
from tiny import FAMILIES, assert_same, byte_tokenizer, logits, prompts_of, tiny, unrelated


SMALL = {"num_layers": 2, "depth": 0.5, "relation_gate": False}
HAMMING = SMALL | {"deferral_by": "hamming", "deferral_threshold": 2}
MODES = [SMALL, HAMMING, HAMMING | {"acts_from": "start"}, HAMMING | {"query_source": "linear_input"}]


def elder(family="llama", **config):
    return get_peft_model(tiny(family), ELDERConfig(**(SMALL | config))).eval()


def edited(family="llama", facts=FACTS[:4], **config):
    """A tiny model with edits, and its editor."""
    editor = LifelongEditor(elder(family, **config), byte_tokenizer(), plain(max_steps=25, batch_size=4))
    editor.edit(facts)
    return editor


def state(model, name="default"):
    return {
        key.replace(f".{name}.", "."): tensor.detach().clone()
        for key, tensor in model.state_dict().items()
        if "elder_" in key and f".{name}." in key
    }


def rows_of(editor, prompts):
    return [editor.tokenizer(prompt)["input_ids"] for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_changes_before_the_first_edit(family):
    if family == "qwen3_moe":
        with pytest.raises(ValueError, match="the second matrix of a dense FFN"):
            elder(family)
        return
    base = logits(tiny(family), unrelated())
    for config in (SMALL, HAMMING, HAMMING | {"deferral": False}):
        model = elder(family, **config)
        assert torch.equal(logits(model, unrelated()), base)
        model.train()
        assert torch.equal(model.eval().base_model.model(unrelated()).logits, base)


def test_the_second_matrix_of_the_ffn_is_found():
    names = {"llama": "mlp.down_proj", "gpt2": "mlp.c_proj", "opt": "fc2", "bloom": "mlp.dense_4h_to_h"}
    for family, name in names.items():
        targets = elder(family).peft_config["default"].target_modules
        assert len(targets) == 2
        assert all(target.endswith(name) for target in targets), targets


def test_parameters_are_those_of_the_paper():
    """GPT2-XL, `c_fc` of six layers: four LoRAs and a router without bias, 24 parameters fewer than the released 1,574,424."""
    lora, router = 4 * 8 * (1600 + 6400), 4 * 1600
    assert 6 * (lora + router) == 1_574_424 - 24
    model = elder(num_experts=4, r=8)
    assert model.get_nb_trainable_parameters()[0] == 2 * (4 * 8 * (48 + 32) + 4 * 32)


@pytest.mark.parametrize("config", MODES, ids=str)
def test_edits_are_answered_and_deferred_rows_keep_their_bits(config):
    editor = edited(**config)
    for prompt, ids in zip(UNRELATED, rows_of(editor, UNRELATED), strict=True):
        lead, codes = editor.tuner.layers_of()[0], editor.tuner.layers_of()[0].codes("default")
        distance = lead.distance("default", editor._procedure.queries_of([ids]))
        assert distance.item() % 2 == 0
        assert distance.item() <= 2 * 2 * 2
        accepted = config is not SMALL and distance.item() < 2
        same = torch.equal(logits(editor.model, ids), logits(tiny(), ids))
        assert same is not accepted, prompt
        assert len(codes) == 4
    answers = [text.strip() for text in editor.answers([fact.prompt for fact in FACTS[:4]], 10)]
    assert answers == [fact.target_new for fact in FACTS[:4]]
    with editor.model.disable_adapter():
        ids = rows_of(editor, [FACTS[0].prompt])[0]
        assert torch.equal(logits(editor.model, ids), logits(tiny(), ids))


@pytest.mark.parametrize("config", MODES, ids=str)
def test_padding_batches_and_caches_change_nothing(config):
    editor = edited(**config)
    model, tokenizer = editor.model, editor.tokenizer
    prompts = [fact.prompt for fact in FACTS[:4]] + UNRELATED[:4]
    alone = [logits(model, ids)[0, -1] for ids in rows_of(editor, prompts)]
    for side in ("left", "right"):
        tokenizer.padding_side = side
        batch = tokenizer(prompts, return_tensors="pt", padding=True)
        position = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            together = model(**batch, position_ids=position).logits
        for row, expected in enumerate(alone):
            last = batch.attention_mask[row].nonzero().max()
            torch.testing.assert_close(together[row, last], expected, atol=1e-4, rtol=1e-4)
    tokenizer.padding_side = "left"
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    cached = model.generate(**batch, max_new_tokens=6, do_sample=False)
    assert torch.equal(cached, model.generate(**batch, max_new_tokens=6, do_sample=False, use_cache=False))
    beams = model.generate(**batch, max_new_tokens=6, num_beams=3, do_sample=False)
    assert torch.equal(beams, model.generate(**batch, max_new_tokens=6, num_beams=3, do_sample=False, use_cache=False))


@pytest.mark.parametrize("config", MODES, ids=str)
def test_a_conversation_on_its_cache_is_the_conversation_given_anew(config):
    editor = edited(**config)
    model, first = editor.model, rows_of(editor, [UNRELATED[0]])[0]
    for turns in ([FACTS[0].prompt, UNRELATED[1]], [UNRELATED[0], FACTS[1].prompt]):
        ids = torch.tensor(rows_of(editor, [turns[0]]))
        output = model.generate(ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        later = torch.cat([output.sequences, torch.tensor(rows_of(editor, [turns[1]]))], 1)
        on_cache = model.generate(
            later, max_new_tokens=5, do_sample=False, past_key_values=copy.deepcopy(output.past_key_values)
        )
        assert torch.equal(on_cache, model.generate(later, max_new_tokens=5, do_sample=False))
    assert first


def test_saved_and_loaded_in_another_process_it_is_the_same(tmp_path):
    editor = edited(**HAMMING | {"deferral_threshold": "calibrate", "false_accept_rate": 1.0})
    prompts = prompts_of(3) + rows_of(editor, [fact.prompt for fact in FACTS[:4]])
    editor.save_pretrained(tmp_path)
    torch.save([logits(editor.model, ids) for ids in prompts], tmp_path / "expected.pt")
    program = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch, lemoe_hf
from peft import PeftModel
from tiny import logits, tiny
model = PeftModel.from_pretrained(tiny(), {str(tmp_path)!r}, adapter_name="other").eval()
lead = model.base_model.layers_of("other")[0]
torch.save([logits(model, ids) for ids in {prompts!r}], {str(tmp_path / "loaded.pt")!r})
torch.save(
    {{k.replace(".other.", "."): v for k, v in model.state_dict().items() if "elder_" in k}}, {str(tmp_path / "state.pt")!r}
)
print(model.peft_config["other"].threshold_in_use)
"""
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert printed.split()[-1] == str(editor.config.threshold_in_use)
    expected, loaded = torch.load(tmp_path / "expected.pt"), torch.load(tmp_path / "loaded.pt")
    assert all(torch.equal(a, b) for a, b in zip(expected, loaded, strict=True))
    assert_same(torch.load(tmp_path / "state.pt"), state(editor.model))


def test_models_and_adapters_do_not_meet():
    editor, other = edited(**HAMMING), edited(facts=FACTS[4:6], **HAMMING)
    ids = rows_of(editor, [FACTS[0].prompt])[0]
    here, there = logits(editor.model, ids), logits(other.model, ids)
    assert len(editor.tuner.layers_of()[0].codes("default")) == 4
    assert len(other.tuner.layers_of()[0].codes("default")) == 2
    editor.model.add_adapter("second", ELDERConfig(**SMALL | {"layers_to_transform": [1, 2, 3]}))
    assert not any("base_layer" in name for name in editor.model.peft_config["second"].target_modules)
    assert torch.equal(logits(editor.model, ids), here)
    editor.model.set_adapter("second")
    assert torch.equal(logits(editor.model, ids), logits(tiny(), ids))
    editor.model.set_adapter("default")
    editor.model.delete_adapter("second")
    assert torch.equal(logits(editor.model, ids), here)
    assert torch.equal(logits(other.model, ids), there)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"top_k": 5}, "top_k=5"),
        ({"num_experts": 0}, "positive"),
        ({"deferral_threshold": "twelve"}, "calibrate"),
        ({"deferral": False}, "hamming"),
        ({"allocation": "firm"}, "soft, hard"),
        ({"false_accept_rate": 2.0}, "share"),
    ],
)
def test_what_no_adapter_can_be_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        ELDERConfig(**config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"num_layers": 6}, "has 4 layers"),
        ({"layers_to_transform": [9]}, "has 4 layers"),
        ({"target_modules": ["mlp"]}, "is a LlamaMLP"),
        ({"query_source": "linear_input", "layers_to_transform": [0, 1]}, "there is none"),
    ],
)
def test_a_place_where_no_mixture_can_be_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(tiny(), ELDERConfig(**(SMALL | config)))


def test_allocations_are_drawn_without_replacement_until_none_is_left():
    used = set()
    for _ in range(9):
        used.add(draw_allocation(2, 3, 1, used, True, seed=0))
    assert len(used) == 9
    with pytest.raises(ValueError, match="All 9 allocations"):
        draw_allocation(2, 3, 1, used, True, seed=0)
    assert draw_allocation(2, 3, 1, used, False, seed=0) in used


def test_without_edits_every_code_is_too_far():
    assert Codes().nearest(torch.ones(2, 6, 4))[0].tolist() == [torch.inf, torch.inf]


def test_an_adapter_of_another_method_is_not_loaded(tmp_path):
    edited().save_pretrained(tmp_path)
    config = LEMoEConfig(layers_to_transform=[2, 3], relation_gate=False)
    model = get_peft_model(tiny(), config)
    with pytest.raises(ValueError, match="belongs to another method"):
        model.load_adapter(str(tmp_path), "default", peft_config=config)
    assert isinstance(PeftModel.from_pretrained(tiny(), tmp_path).peft_config["default"], ELDERConfig)
