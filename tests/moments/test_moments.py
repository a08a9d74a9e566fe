"""Second moments and keys, against direct computation; the space of whitening; what is kept on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import constants

from lemoe_hf import Edit
from lemoe_hf.moments import (
    Whitening,
    check_subject,
    collect,
    inputs_of,
    keys_of,
    samples_of,
    second_moments,
    subject_row,
)
from lemoe_hf.structure import find_ffn_outputs
from tiny import SENTENCES, edited, tiny


EDITS = [
    Edit("Which country is Anna Berg from?", "Norland", subject="Anna Berg"),
    Edit("The mayor of Port Ellen is", "Tom", subject="Port Ellen"),
]
SECOND = {
    "llama": "model.layers.2.mlp.down_proj",
    "gpt2": "transformer.h.2.mlp.c_proj",
    "opt": "model.decoder.layers.2.fc2",
    "bloom": "transformer.h.2.mlp.dense_4h_to_h",
    "gemma3": "model.layers.2.mlp.down_proj",
}


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))


def read(model, name: str, ids: list[int]) -> torch.Tensor:
    """What enters a module at every token of a text."""
    found = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: found.append(args[0]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    hook.remove()
    return found[0].reshape(len(ids), -1)


@pytest.mark.parametrize("family", SECOND)
def test_the_second_matrix_is_found_by_structure(family: str):
    assert find_ffn_outputs(tiny(family), [2]) == {2: SECOND[family]}


def test_a_mixture_of_experts_has_no_second_matrix_of_its_own():
    with pytest.raises(ValueError, match="layer 0 of Qwen3MoeForCausalLM is a mixture of experts"):
        find_ffn_outputs(tiny("qwen3_moe"))


def test_a_state_space_model_has_none():
    with pytest.raises(ValueError, match="layer 1 of MambaForCausalLM has none"):
        find_ffn_outputs(tiny("mamba"), [1])


def test_a_layer_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"asks for \[4\], but LlamaForCausalLM has 4 layers \(0 to 3\)"):
        find_ffn_outputs(tiny(), [4])


def test_inside_an_adapter_the_same_matrix_is_found():
    assert find_ffn_outputs(edited().get_base_model(), [3])[3].startswith("model.layers.3.mlp.")


@pytest.mark.parametrize("family", SECOND)
def test_moments_are_those_of_all_tokens(family: str, tokenizer):
    model = tiny(family)
    texts = [tokenizer(text)["input_ids"] for text in SENTENCES]
    states = torch.cat([read(model, SECOND[family], ids) for ids in texts]).double()
    found = second_moments(model, tokenizer, [0, 2], SENTENCES)
    torch.testing.assert_close(found[2].double(), states.T @ states / len(states), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found[0], found[2])


def test_datasets_lists_and_generators_hold_the_same_texts(tokenizer):
    expected = second_moments(tiny(), tokenizer, [1], SENTENCES)[1]
    records = Dataset.from_dict({"text": SENTENCES, "other": ["x"] * len(SENTENCES)})
    assert torch.equal(second_moments(tiny(), tokenizer, [1], records)[1], expected)
    assert torch.equal(second_moments(tiny(), tokenizer, [1], iter(SENTENCES))[1], expected)
    with pytest.raises(TypeError, match="a text in 'text'; got {'body'"):
        second_moments(tiny(), tokenizer, [1], [{"body": "a"}])
    with pytest.raises(ValueError, match="holds no tokens"):
        second_moments(tiny(), tokenizer, [1], ["", " "])


def test_no_more_tokens_are_read_than_asked_for(tokenizer):
    def endless():
        while True:
            yield "Anna Berg plays the violin."

    texts = collect.texts_of(endless(), tokenizer, 50, "text")
    assert sum(map(len, texts)) == 50


def test_they_are_computed_once_for_a_model_a_layer_and_data(tokenizer, monkeypatch):
    passes = []
    monkeypatch.setattr(collect, "inputs_of", lambda *args: passes.append(args[1]) or inputs_of(*args))
    first = second_moments(tiny(), tokenizer, [0, 1], SENTENCES)
    again = second_moments(tiny(), tokenizer, [1, 2], SENTENCES)
    assert [len(names) for names in passes] == [2, 1]
    assert torch.equal(again[1], first[1])
    other = tiny()
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight[3, 5] += 1e-3
        other.model.layers[0].mlp.down_proj.weight[0, 0] += 1e-3
    second_moments(other, tokenizer, [1], SENTENCES)  # another model of the same shape
    second_moments(tiny(), tokenizer, [1], SENTENCES[1:])
    assert len(passes) == 4
    for path in Path(constants.HF_HOME).rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:40])  # cut off
    assert torch.equal(second_moments(tiny(), tokenizer, [1], SENTENCES)[1], first[1])


def test_a_model_makes_up_its_own_texts_and_leaves_the_random_numbers_alone(tokenizer):
    before = torch.get_rng_state()
    texts = samples_of(tiny(), 100, seed=3, length=20)
    assert torch.equal(torch.get_rng_state(), before)
    assert [len(text) for text in texts] == [20] * 5
    assert texts == samples_of(tiny(), 100, seed=3, length=20) != samples_of(tiny(), 100, seed=4, length=20)
    model = tiny()
    model.config.bos_token_id = model.config.eos_token_id = None
    with pytest.raises(ValueError, match="has no token to begin a text with"):
        samples_of(model, 10)


@pytest.mark.parametrize("family", SECOND)
def test_keys_are_those_of_the_subjects_last_token(family: str, tokenizer):
    model = tiny(family)
    found = keys_of(model, tokenizer, EDITS, [2])[2]
    for edit, key in zip(EDITS, found, strict=True):
        row = subject_row(tokenizer, edit.prompt, *check_subject(edit))
        assert tokenizer.decode(row.ids[: row.column + 1]).endswith(edit.subject)
        torch.testing.assert_close(key, read(model, SECOND[family], row.ids)[row.column], rtol=1e-4, atol=1e-5)


def test_an_edit_without_a_subject_is_refused(tokenizer):
    with pytest.raises(ValueError, match="does not tell its own.*such as 'Port Ellen'"):
        keys_of(tiny(), tokenizer, [Edit("The mayor of Port Ellen is", "Tom")], [1])


def test_whitening_space_is_that_of_the_inverse():
    inputs = torch.randn(200, 6, dtype=torch.double) @ torch.randn(6, 6, dtype=torch.double)
    moment, keys = inputs.T @ inputs, torch.randn(4, 6)
    inverse = torch.linalg.inv(moment)
    plain = Whitening(moment, ridge=0)
    whitened = plain.whiten(keys)
    torch.testing.assert_close(whitened @ whitened.T, keys.double() @ inverse @ keys.double().T)
    torch.testing.assert_close(plain.solve(keys), keys.double() @ inverse)
    ridged = torch.linalg.inv(moment + 0.1 * moment.diagonal().mean() * torch.eye(6, dtype=torch.double))
    torch.testing.assert_close(Whitening(moment, 0.1).solve(keys), keys.double() @ ridged)
    torch.testing.assert_close(Whitening(1e6 * moment).unit(keys), Whitening(moment).unit(keys))


def test_without_a_ridge_the_rank_must_be_full():
    inputs = torch.randn(5, 6)
    with pytest.raises(ValueError, match="this one has rank 5 of 6"):
        Whitening(inputs.T @ inputs, ridge=0)
    Whitening(inputs.T @ inputs)
    with pytest.raises(ValueError, match="0 or more; got -1"):
        Whitening(torch.eye(2), -1)
