"""What is saved is what you had: every loader, every adapter name, any number of experts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from lemoe_hf import LEMoEConfig
from lemoe_hf.routing.names import Names
from lemoe_hf.routing.vocabulary import MARK, STOP, Vocabulary
from lemoe_hf.tuners.sizes import LATER
from tiny import (
    CONFIGS,
    FAMILIES,
    LAYERS,
    VOCAB,
    adapter_state,
    assert_same,
    edited,
    logits,
    needs_transformers_adapters,
    prompts_of,
    put_edits,
    tiny,
    unrelated,
)
from worded import put_vocabulary, vocabulary_of


COUNTS = [0, 1, 7, 1000]
SPAN = (2, 4)


def adapter_of(count: int, family: str = "llama", seed: int = 0, **config) -> PeftModel:
    model = edited(family, **config)
    for first in range(0, count, 500):
        prompts = prompts_of(count)[first : first + 500]
        put_edits(model, prompts, subjects=[SPAN] * len(prompts), seed=seed + first)
    return model


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=COUNTS)
def saved(request, base_folder, tmp_path_factory) -> tuple[PeftModel, Path]:
    """A model with 0, 1, 7 or 1,000 edits, and its adapter on disk."""
    model = adapter_of(request.param)
    model.peft_config["default"].base_model_name_or_path = str(base_folder)
    folder = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(folder)
    return model, folder


def load_peft(folder, base_folder):
    return PeftModel.from_pretrained(tiny(), folder)


def load_peft_named(folder, base_folder):
    return PeftModel.from_pretrained(tiny(), folder, adapter_name="other")


def load_peft_low_memory(folder, base_folder):
    return PeftModel.from_pretrained(tiny(), folder, low_cpu_mem_usage=True)


def load_peft_trainable(folder, base_folder):
    return PeftModel.from_pretrained(tiny(), folder, is_trainable=True)


def load_auto_peft(folder, base_folder):
    return AutoPeftModelForCausalLM.from_pretrained(folder)


def load_beside_another(folder, base_folder):
    model = get_peft_model(tiny(), LEMoEConfig(expert="ffn", expert_dim=3))
    put_edits(model, [[5, 5, 5]], seed=9)
    model.load_adapter(folder, adapter_name="second")
    model.set_adapter("second")
    return model


def load_native(folder, base_folder):
    model = tiny()
    model.load_adapter(folder)
    return model


def load_native_named(folder, base_folder):
    model = tiny()
    model.load_adapter(folder, adapter_name="other")
    return model


def load_auto(folder, base_folder):
    return AutoModelForCausalLM.from_pretrained(folder)


LOADERS = [
    load_peft,
    load_peft_named,
    load_peft_low_memory,
    load_peft_trainable,
    load_auto_peft,
    load_beside_another,
    load_native,
    load_native_named,
    load_auto,
]


def stored(model) -> dict[str, torch.Tensor]:
    """Tensors of the active adapter, without what differs between loaders: prefixes and the adapter's name."""
    name = model.active_adapter if isinstance(model, PeftModel) else next(iter(model.peft_config))
    state = adapter_state(model, name)
    return {key.removeprefix("base_model.model.").replace(f".{name}.", "."): value for key, value in state.items()}


@pytest.mark.parametrize("load", LOADERS)
def test_every_loader_gives_back_what_was_saved(saved, base_folder, load):
    """Same logits on prompts that are edited and on prompts that are not, same tensors, same ledger."""
    model, folder = saved
    loaded = load(folder, base_folder).eval()
    for ids in (prompts_of(7), unrelated()):
        assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert_same(stored(loaded), stored(model))
    if isinstance(loaded, PeftModel):
        assert loaded.base_model.ledger() == model.base_model.ledger()


@pytest.mark.parametrize("load", LOADERS)
def test_generation_after_loading(saved, base_folder, load):
    model, folder = saved
    ids = torch.tensor(prompts_of(3))
    loaded = load(folder, base_folder).eval()
    options = {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(input_ids=ids, **options), model.generate(input_ids=ids, **options))


def test_files_are_safetensors_and_json_with_the_sizes(saved):
    model, folder = saved
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    num_edits = len(model.base_model.ledger())
    assert (config["num_experts"], config["num_anchors"]) == (num_edits, 2 * num_edits)
    assert not [name for name in tensors if "default" in name]
    assert all(len(tensor) == num_edits for name, tensor in tensors.items() if "lemoe_bank" in name)


def test_freeze_state_after_loading(saved):
    """For inference nothing is trainable, for training the open expert alone."""
    _, folder = saved
    assert not [p for p in load_peft(folder, None).parameters() if p.requires_grad]
    trainable = [name for name, p in load_peft_trainable(folder, None).named_parameters() if p.requires_grad]
    assert trainable
    assert all(".lemoe_open." in name for name in trainable)


@pytest.mark.parametrize("name", ["default", "other", "lemoe", "bank", "lemoe_open"])
@pytest.mark.filterwarnings("ignore:.*adapter name.*")
def test_any_adapter_name_saves_and_loads(tmp_path, name):
    model = get_peft_model(tiny(), LEMoEConfig(), adapter_name=name).eval()
    put_edits(model, prompts_of(3), subjects=[SPAN] * 3)
    model.save_pretrained(tmp_path)
    folder = tmp_path if name == "default" else tmp_path / name
    for other in ("default", name):
        loaded = PeftModel.from_pretrained(tiny(), folder, adapter_name=other)
        assert torch.equal(logits(loaded, prompts_of(3)), logits(model, prompts_of(3)))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_survives_the_disk(family, tmp_path):
    model = adapter_of(3, family)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(family), tmp_path)
    for ids in (prompts_of(3), unrelated()):
        assert torch.equal(logits(loaded, ids), logits(model, ids))
    native = tiny(family)
    native.load_adapter(tmp_path)
    assert torch.equal(logits(native, prompts_of(3)), logits(model, prompts_of(3)))


@pytest.mark.parametrize(
    "config",
    [
        {"expert": "ffn", "expert_dim": None},
        {"expert_dtype": "bfloat16"},
        {"expert_dtype": "float16", "layers_to_transform": [0, 2]},
        {"lam": 0.5, "normalize": False, "threshold": 0.7},
        {"target_modules": ["mlp"]},
    ],
)
def test_every_form_of_adapter_survives_the_disk(config, tmp_path):
    model = adapter_of(3, **config)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path)
    assert torch.equal(logits(loaded, prompts_of(3)), logits(model, prompts_of(3)))
    assert_same(adapter_state(loaded), adapter_state(model))


def test_the_unit_of_the_outputs_is_saved(tmp_path):
    model = adapter_of(2)
    model.peft_config["default"].output_scale = 0.123
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load_peft(tmp_path, None), prompts_of(2)), logits(model, prompts_of(2)))
    assert torch.equal(logits(load_native(tmp_path, None), prompts_of(2)), logits(model, prompts_of(2)))


@pytest.mark.parametrize("load", [load_peft, load_peft_named, load_peft_trainable, load_beside_another])
def test_a_loaded_adapter_takes_the_next_edit(saved, base_folder, load, tmp_path):
    """Edits before and after loading are as edits in one go; and so they are after a second save."""
    model, folder = saved
    count = len(model.base_model.ledger())
    loaded = load(folder, base_folder).eval()
    before = logits(loaded, prompts_of(7))
    (edit,) = put_edits(loaded, [[7, 8, 9]], seed=5)
    assert edit == count
    assert torch.equal(logits(loaded, prompts_of(7)), before)
    assert not torch.allclose(logits(loaded, [7, 8, 9])[:, -1], logits(tiny(), [7, 8, 9])[:, -1], atol=1e-2)
    assert loaded.peft_config[loaded.active_adapter].num_experts == count + 1
    name = loaded.active_adapter
    loaded.save_pretrained(tmp_path, selected_adapters=[name])
    again = PeftModel.from_pretrained(tiny(), tmp_path if name == "default" else tmp_path / name)
    assert torch.equal(logits(again, [7, 8, 9]), logits(loaded, [7, 8, 9]))
    loaded.base_model.remove_edit(edit)
    assert torch.equal(logits(loaded, [7, 8, 9]), logits(model, [7, 8, 9]))


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize(("present", "loaded"), [(0, 3), (2, 5), (5, 2), (3, 0), (3, 3)])
def test_loading_onto_an_existing_adapter_takes_its_place(tmp_path, present, loaded, low_cpu_mem_usage):
    """As Trainer does when it resumes or loads its best checkpoint: with more edits, with fewer, with none."""
    source, model = adapter_of(loaded, seed=3), adapter_of(present)
    source.save_pretrained(tmp_path)
    logits(model, prompts_of(5))  # builds the index of the anchors that are about to go
    model.load_adapter(tmp_path, adapter_name="default", low_cpu_mem_usage=low_cpu_mem_usage)
    assert_same(adapter_state(model), adapter_state(source))
    assert torch.equal(logits(model, prompts_of(5)), logits(source, prompts_of(5)))
    assert model.peft_config["default"].num_experts == loaded
    assert model.base_model.ledger() == source.base_model.ledger()
    put_edits(model, [[7, 8, 9]], seed=5)
    assert model.peft_config["default"].num_experts == loaded + 1


def test_adapters_are_added_switched_and_deleted_after_loading(tmp_path):
    one, two = adapter_of(2), adapter_of(7, seed=4, expert="ffn", expert_dim=3)
    one.save_pretrained(tmp_path / "one")
    two.save_pretrained(tmp_path / "two")
    prompts = prompts_of(7)
    model = PeftModel.from_pretrained(tiny(), tmp_path / "one", adapter_name="a").eval()
    model.load_adapter(tmp_path / "two", adapter_name="b")
    assert torch.equal(logits(model, prompts), logits(one, prompts))
    model.set_adapter("b")
    assert torch.equal(logits(model, prompts), logits(two, prompts))
    with model.disable_adapter():
        assert torch.equal(logits(model, prompts), logits(tiny(), prompts))
    model.delete_adapter("a")
    assert torch.equal(logits(model, prompts), logits(two, prompts))
    model.load_adapter(tmp_path / "one", adapter_name="a")
    model.set_adapter("a")
    assert torch.equal(logits(model, prompts), logits(one, prompts))


@needs_transformers_adapters
def test_native_adapters_are_switched_disabled_and_deleted(tmp_path):
    """transformers' own integration, with no PeftModel around."""
    one, two, prompts = adapter_of(2), adapter_of(7, seed=4), prompts_of(7)
    one.save_pretrained(tmp_path / "one")
    two.save_pretrained(tmp_path / "two")
    model = tiny()
    model.load_adapter(tmp_path / "one", adapter_name="a")
    model.load_adapter(tmp_path / "two", adapter_name="b")
    model.set_adapter("a")
    assert torch.equal(logits(model, prompts), logits(one, prompts))
    model.set_adapter("b")
    assert torch.equal(logits(model, prompts), logits(two, prompts))
    model.disable_adapters()
    assert torch.equal(logits(model, prompts), logits(tiny(), prompts))
    model.enable_adapters()
    model.delete_adapter("a")
    model.set_adapter("b")
    assert torch.equal(logits(model, prompts), logits(two, prompts))
    model.save_pretrained(tmp_path / "saved")
    again = load_native(tmp_path / "saved", None)
    assert torch.equal(logits(again, prompts), logits(two, prompts))


def test_a_new_process_gives_the_same_logits(base_folder, tmp_path):
    model = adapter_of(7)
    model.peft_config["default"].base_model_name_or_path = str(base_folder)
    model.save_pretrained(tmp_path)
    prompts = torch.tensor(prompts_of(7) + prompts_of(2, seed=8))
    save_file({"prompts": prompts, "logits": logits(model, prompts)}, tmp_path / "expected")
    code = """
import sys, torch, lemoe_hf
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
expected = load_file(sys.argv[1] + "/expected")
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    actual = model(input_ids=expected["prompts"]).logits
assert torch.equal(actual, expected["logits"])
assert len(model.base_model.ledger()) == 7
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_without_the_import_peft_only_knows_a_key_error(tmp_path):
    """What the model card and the README must warn of."""
    adapter_of(1).save_pretrained(tmp_path)
    code = "import sys; from peft import PeftConfig; PeftConfig.from_pretrained(sys.argv[1])"
    environment = os.environ | {"LEMOE_HF_AUTOLOAD": "0"}  # without the hook that comes with an install
    command = [sys.executable, "-c", code, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert "KeyError: 'LEMOE'" in result.stderr
    assert "import lemoe_hf" in (tmp_path / "README.md").read_text()


# ------------------------------------------------------------------------------------------------------- what is wrong


def resized(**sizes) -> AutoModelForCausalLM:
    config = LlamaConfig(**(CONFIGS["llama"].to_diff_dict() | sizes))
    return AutoModelForCausalLM.from_config(config)


def test_a_second_adapter_is_checked_like_the_first(tmp_path):
    source = adapter_of(2)
    source.peft_config["default"].base_model_fingerprint = "0" * 16
    source.save_pretrained(tmp_path)
    model = edited()
    with pytest.warns(UserWarning, match="made for .* .fingerprint 0000"):
        model.load_adapter(tmp_path, adapter_name="other")
    model.add_adapter("third", LEMoEConfig())
    assert model.peft_config["third"].base_model_fingerprint == model.peft_config["default"].base_model_fingerprint


@pytest.mark.filterwarnings("ignore:This adapter was made for")
def test_another_hidden_size_is_an_error_that_says_so(tmp_path):
    adapter_of(2).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="made for another hidden size, `expert_dim` or `num_experts`. Load the base model"
    ):
        PeftModel.from_pretrained(resized(hidden_size=64, head_dim=16), tmp_path)


def test_another_base_model_is_warned_of_by_name_and_fingerprint(tmp_path):
    model = adapter_of(2)
    config = model.peft_config["default"]
    config.base_model_name_or_path = "someone/their-model"
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=f"made for someone/their-model .fingerprint {config.base_model_fingerprint}"):
        PeftModel.from_pretrained(resized(vocab_size=330), tmp_path)


def test_the_right_base_model_is_not_warned_of(tmp_path):
    adapter_of(2).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        PeftModel.from_pretrained(tiny(), tmp_path)


@pytest.mark.parametrize("lost", ["lemoe_bank.out_proj", "lemoe_anchors.tokens", "lemoe_ledger.bytes"])
def test_missing_tensors_are_an_error_that_names_them(tmp_path, lost):
    adapter_of(2).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if lost not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"weights lack {lost}: the file is damaged, or belongs to another method"):
        PeftModel.from_pretrained(tiny(), tmp_path)


@pytest.mark.parametrize("cut", ["lemoe_bank.out_proj", "lemoe_anchors.expert", "lemoe_anchors.tokens"])
def test_tensors_that_disagree_are_an_error(tmp_path, cut):
    """Two experts' output projections beside three's input projections were never saved by anyone."""
    adapter_of(3).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(cut))
    tensors[name] = tensors[name][:2].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="damaged"):
        PeftModel.from_pretrained(tiny(), tmp_path)


@pytest.mark.parametrize("loads", ["from_pretrained", "load_adapter", "over another"])
def test_an_adapter_from_before_targets_and_kinds_of_tokens_were_kept_is_loaded_without(tmp_path, loads):
    model = adapter_of(2)
    model.save_pretrained(tmp_path)
    file, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    kept = {name: tensor for name, tensor in load_file(file).items() if not any(later in name for later in LATER)}
    assert len(kept) == len(load_file(file)) - 17
    save_file(kept, file, {"format": "pt"})
    sizes = {"num_targets", "num_target_tokens", *Vocabulary.sizes, *Names.sizes}
    config.write_text(json.dumps({k: v for k, v in json.loads(config.read_text()).items() if k not in sizes}))
    if loads == "from_pretrained":
        loaded = PeftModel.from_pretrained(tiny(), tmp_path).eval()
    elif loads == "load_adapter":
        loaded = tiny()
        loaded.load_adapter(tmp_path)
    else:
        loaded = edited()
        put_edits(loaded, prompts_of(3), targets=[[30], [31, 32], [33]], seed=9)
        put_vocabulary(loaded, vocabulary_of(marks=(40,), reply=(50, 51)))
        loaded.load_adapter(tmp_path, "default")
    prefix = "" if loads == "load_adapter" else "base_model.model."
    expected = {prefix + name.removeprefix("base_model.model."): each for name, each in adapter_state(model).items()}
    actual, expected = (
        {k: v for k, v in each.items() if "_stamp." not in k} for each in (adapter_state(loaded), expected)
    )
    assert_same(actual, expected)
    for ids in (prompts_of(2), unrelated()):
        assert torch.equal(logits(loaded, ids), logits(model, ids))


def test_targets_and_kinds_of_tokens_survive_the_disk(tmp_path):
    model = edited()
    put_edits(model, prompts_of(2), targets=[[30], [31, 32]])
    put_vocabulary(model, vocabulary_of(marks=(40,), reply=(50, 51)))
    model.base_model.store([], [])
    model.save_pretrained(tmp_path)
    layer = PeftModel.from_pretrained(tiny(), tmp_path).base_model.layers_of()[0]
    assert [layer.lemoe_targets["default"].of(edit) for edit in (0, 1)] == [((30,),), ((31, 32),)]
    vocabulary = layer.vocabulary("default")
    assert (vocabulary.kind(40), vocabulary.reply_tokens) == (MARK | STOP, (50, 51))
    config = layer.configs["default"]
    assert (config.num_targets, config.num_target_tokens) == (2, 3)
    assert (config.num_token_kinds, config.num_reply_tokens) == (VOCAB, 2)


def test_damaged_targets_are_an_error(tmp_path):
    model = edited()
    put_edits(model, prompts_of(2), targets=[[30], [31, 32]])
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    state = load_file(file)
    (name,) = (name for name in state if name.endswith("lemoe_targets.tokens"))
    save_file(state | {name: state[name][:-1].clone()}, file, {"format": "pt"})
    with pytest.raises(ValueError, match="damaged: lemoe_targets.tokens has 2 tokens, and its lengths tell of 3"):
        PeftModel.from_pretrained(tiny(), tmp_path)


def test_the_weights_of_another_method_are_an_error(tmp_path):
    adapter_of(2).save_pretrained(tmp_path / "lemoe")
    lora = get_peft_model(tiny(), LoraConfig(task_type="CAUSAL_LM"))
    lora.save_pretrained(tmp_path / "lora")
    foreign = (tmp_path / "lora" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "lemoe" / "adapter_model.safetensors").write_bytes(foreign)
    with pytest.raises(ValueError, match="damaged, or belongs to another method.*nothing for this layer"):
        PeftModel.from_pretrained(tiny(), tmp_path / "lemoe")


def test_an_adapter_of_another_layer_count_is_an_error(tmp_path):
    """Its layer is not there: PEFT finds no module of that name."""
    adapter_of(1).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="made for"), pytest.raises(ValueError, match="model.layers.3.mlp"):
        PeftModel.from_pretrained(resized(num_hidden_layers=LAYERS - 1), tmp_path)


def test_a_failed_load_leaves_the_model_as_it_was(tmp_path):
    adapter_of(2).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if "lemoe_anchors.tokens" not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    model = adapter_of(3, seed=6)
    before, answers = adapter_state(model), logits(model, prompts_of(3))
    with pytest.raises(ValueError, match="lack"):
        model.load_adapter(tmp_path, adapter_name="default")
    assert_same(adapter_state(model), before)
    assert torch.equal(logits(model, prompts_of(3)), answers)


def test_a_config_that_has_grown_is_refused_for_another_adapter():
    """It tells the sizes of the adapter that it belongs to; unused, it may serve again."""
    config = LEMoEConfig()
    assert get_peft_model(tiny(), config).peft_config["default"] is config
    model = get_peft_model(tiny(), config).eval()
    put_edits(model, prompts_of(2))
    for refuse in (lambda: get_peft_model(tiny(), config), lambda: model.add_adapter("other", config)):
        with pytest.raises(ValueError, match=r"has grown with it \(2 anchors of edits\). Make a new LEMoEConfig"):
            refuse()
    assert model.peft_config["default"].num_experts == 2
