"""A stored adapter is data: through whichever door it comes, it is looked at before it is used."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from lemoe_hf import LEMoEConfig
from lemoe_hf.tuners.config import FORMAT
from tiny import adapter_state, edited, logits, prompts_of, put_edits, tiny, unrelated


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
SPAN = (2, 4)


def adapter(folder: Path, **config) -> Path:
    """A saved adapter with three edits."""
    model = edited(**config)
    put_edits(model, prompts_of(3), subjects=[SPAN] * 3, targets=[[30], [31, 32], [33]])
    model.save_pretrained(folder)
    return folder


def put_config(folder: Path, **changed) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def put_tensor(folder: Path, name: str, change: Callable, sealed: bool = False) -> None:
    """Change a tensor of a file, and let the file seem whole unless it is to stay `sealed`."""
    tensors = load_file(folder / WEIGHTS)
    (key,) = (key for key in tensors if key.endswith(f"lemoe_{name}"))
    tensors[key] = change(tensors[key].clone()).contiguous()
    for key in tensors if not sealed else ():
        if key.endswith("_stamp.digest"):
            tensors[key] = torch.zeros_like(tensors[key])
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def peft(folder: Path):
    return PeftModel.from_pretrained(tiny(), folder)


def auto_peft(folder: Path):
    tiny().save_pretrained(folder / "base")
    named = json.loads((folder / CONFIG).read_text())["base_model_name_or_path"]
    put_config(folder, base_model_name_or_path=named or str(folder / "base"))
    return AutoPeftModelForCausalLM.from_pretrained(folder)


def beside_another(folder: Path):
    model = edited()
    model.load_adapter(folder, adapter_name="other")
    return model


def transformers_own(folder: Path):
    model = tiny()
    model.load_adapter(folder)
    return model


DOORS = [peft, auto_peft, beside_another, transformers_own]


def fill(value):
    return lambda tensor: tensor.fill_(value)


def ledger(*lines: str) -> Callable:
    return lambda _: torch.tensor(list("".join(line + "\n" for line in lines).encode()), dtype=torch.uint8)


def lines_of(folder: Path) -> list[dict]:
    text = next(v for k, v in load_file(folder / WEIGHTS).items() if "ledger" in k).numpy().tobytes().decode()
    return [json.loads(line) for line in text.splitlines()]


def first(value):
    def change(tensor):
        tensor.view(-1)[0] = value
        return tensor

    return change


# ------------------------------------------------------------------------------------------------------------- weights

DAMAGED = {
    "a threshold that every prompt passes": ("anchors.threshold", first(-1.0)),
    "a threshold that is no number": ("anchors.threshold", first(math.nan)),
    "a threshold above one": ("anchors.threshold", first(1.5)),
    "an expert before the first": ("anchors.expert", first(-1)),
    "an expert that is not there": ("anchors.expert", first(400)),
    "an expert far before the first": ("anchors.expert", first(-(2**31))),
    "an expert of another edit": ("anchors.expert", first(2)),
    "a start before the anchor": ("anchors.start", first(-3)),
    "a start behind the anchor": ("anchors.start", first(99)),
    "a negative token": ("anchors.tokens", first(-5)),
    "a negative edit": ("anchors.edit", first(-1)),
    "an edit after which there is none": ("anchors.edit", first(2**31 - 1)),
    "an edit that the ledger does not know": ("anchors.edit", first(77)),
    "lengths that wrap around": ("anchors.lengths", first(-(2**31))),
    "an expert that is no number": ("bank.in_proj", first(math.nan)),
    "an expert without bounds": ("bank.out_proj", first(math.inf)),
    "an open expert that is no number": ("open.in_proj", first(math.nan)),
    "targets of another edit": ("targets.edit", first(9)),
    "targets out of order": ("targets.edit", lambda tensor: tensor.flip(0)),
    "a negative token of a target": ("targets.tokens", first(-1)),
    "a scale that is no number": ("stamp.scale", fill(math.nan)),
    "a next edit that was given already": ("stamp.next_edit", fill(1)),
    "tokens of another dtype": ("anchors.tokens", lambda tensor: tensor.to(torch.int64)),
    "a ledger that is no text": ("ledger.bytes", first(255)),
    "a ledger that is no JSON": ("ledger.bytes", ledger("{")),
    "a ledger of a number": ("ledger.bytes", ledger("5")),
    "a ledger without edits": ("ledger.bytes", ledger()),
    "a ledger that is nested without end": ("ledger.bytes", ledger("[" * 100_000)),
    "a ledger with an endless number": ("ledger.bytes", ledger('{"id": ' + "9" * 5000 + "}")),
    "an edit whose prompt is a number": ("ledger.bytes", ledger('{"id": 0, "expert": 0, "edit": {"prompt": 5}}')),
}
# transformers' own loader makes it fit, or refuses it for its length, before anybody else sees it.
MADE_TO_FIT = ("tokens of another dtype",)
LENGTH = tuple(damage for damage, (name, change) in DAMAGED.items() if change.__qualname__.startswith("ledger."))


@pytest.mark.parametrize("door", [peft, auto_peft, beside_another], ids=lambda door: door.__name__)
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_weights_are_refused_by_name(tmp_path, damage, door):
    put_tensor(adapter(tmp_path), *DAMAGED[damage])
    with pytest.raises(ValueError, match=r"adapter_model.safetensors\) are damaged: lemoe_"):
        door(tmp_path)


@pytest.mark.parametrize("damage", [name for name in DAMAGED if name not in MADE_TO_FIT])
def test_damaged_weights_are_refused_by_transformers_own_loader(tmp_path, damage):
    put_tensor(adapter(tmp_path), *DAMAGED[damage])
    expected = "damaged: lemoe_" if damage not in LENGTH else "size"
    with pytest.raises((ValueError, RuntimeError), match=expected):
        transformers_own(tmp_path)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_a_bit_that_fell_over_is_noticed(tmp_path, door):
    put_tensor(adapter(tmp_path), "bank.out_proj", lambda tensor: tensor * 1.001, sealed=True)
    with pytest.raises(ValueError, match="changed since they were saved.*Restore the file"):
        door(tmp_path)


def test_a_ledger_that_tells_other_edits_than_the_anchors_is_noticed(tmp_path):
    entries = lines_of(adapter(tmp_path))
    harmless = [entry | {"edit": {"prompt": "Is it late?", "target_new": "No"}} for entry in entries]
    put_tensor(tmp_path, "ledger.bytes", ledger(*map(json.dumps, harmless)), sealed=True)
    with pytest.raises(ValueError, match="changed since they were saved"):
        peft(tmp_path)


def test_what_is_whole_loads_through_every_door(tmp_path):
    expected = logits(peft(adapter(tmp_path)), prompts_of(3))
    for door in DOORS:
        model = door(tmp_path)
        if door is beside_another:
            model.set_adapter("other")
        assert torch.equal(logits(model.eval(), prompts_of(3)), expected), door.__name__


def test_a_failed_load_leaves_the_other_adapter_alone(tmp_path):
    put_tensor(adapter(tmp_path), "anchors.threshold", first(-1.0))
    model = edited()
    put_edits(model, prompts_of(2))
    before = adapter_state(model)
    with pytest.raises(ValueError, match="damaged"):
        model.load_adapter(tmp_path, adapter_name="default")
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter_state(model).items())


# -------------------------------------------------------------------------------------------------------------- config


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
@pytest.mark.parametrize(
    "changed",
    [
        {"lam": math.nan},
        {"lam": math.inf},
        {"lam": "1"},
        {"depth": "deep"},
        {"threshold": math.nan},
        {"output_scale": -1.0},
        {"num_anchors": -1},
        {"num_anchors": 1.5},
        {"num_experts": "3"},
        {"num_experts": None},
        {"expert_dim": True},
        {"expert_dim": 10**9},
        {"top_k": 0},
        {"normalize": "no"},
        {"target_modules": 7},
        {"target_modules": "(["},
        {"layers_to_transform": [-1]},
        {"base_model_fingerprint": "`x`"},
        {"base_model_name_or_path": 5},
    ],
    ids=str,
)
def test_a_config_with_a_wrong_value_is_refused_by_name(tmp_path, changed, door):
    adapter(tmp_path)
    put_config(tmp_path, **changed)
    with pytest.raises((ValueError, RuntimeError), match="`?" + next(iter(changed)) + "|size mismatch|shape"):
        door(tmp_path)


@pytest.mark.parametrize("field", [name for name in LEMoEConfig.__dataclass_fields__ if name.startswith("num_")])
def test_sizes_in_a_config_claim_no_memory(tmp_path, field):
    """The weights tell what there is: transformers' own loader, which goes by the config, is told that they differ."""
    adapter(tmp_path)
    put_config(tmp_path, **{field: 2**31 - 1})
    expected, before = logits(peft(adapter(tmp_path / "whole")), prompts_of(3)), peak_memory()
    assert torch.equal(logits(peft(tmp_path), prompts_of(3)), expected)
    if field in UNUSED:
        assert torch.equal(logits(transformers_own(tmp_path).eval(), prompts_of(3)), expected)
    else:
        with pytest.raises((ValueError, RuntimeError), match=r"damaged|size"):
            transformers_own(tmp_path)
    assert peak_memory() - before < 200


# Of a router, and of relations, that this adapter does not have.
UNUSED = {"num_router_anchors"} | {
    name for name in LEMoEConfig.__dataclass_fields__ if name.startswith("num_relation_")
}


def peak_memory() -> float:
    """In MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_config_without_its_weights_answers_nothing(tmp_path):
    config = LEMoEConfig.from_pretrained(adapter(tmp_path))
    model = get_peft_model(tiny(), config).eval()
    with pytest.raises(ValueError, match="is missing"):
        logits(model, prompts_of(1))


def test_an_adapter_of_a_later_format_asks_for_an_update(tmp_path):
    adapter(tmp_path)
    assert json.loads((tmp_path / CONFIG).read_text())["format_version"] == FORMAT
    put_config(tmp_path, format_version=FORMAT + 1)
    with pytest.raises(ValueError, match=f"is of format {FORMAT + 1}.*Update it"):
        peft(tmp_path)


# ----------------------------------------------------------------------------------------------------- what goes with it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_base_model_in_another_precision_is_the_same_one(tmp_path, dtype, recwarn):
    PeftModel.from_pretrained(tiny().to(dtype), adapter(tmp_path))
    assert not [each for each in recwarn if "weights are others" in str(each.message)]


@pytest.mark.parametrize("door", [peft, transformers_own], ids=lambda door: door.__name__)
def test_a_base_model_of_the_same_shape_with_other_weights_is_warned_of(tmp_path, monkeypatch, door):
    adapter(tmp_path)

    def other(model=tiny()):  # noqa: B008
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.05)
        return model

    monkeypatch.setitem(globals(), "tiny", other)
    with pytest.warns(UserWarning, match="same shape whose weights are others"):
        door(tmp_path)


def test_the_scale_is_the_weights_own_whatever_config_lies_beside_them(tmp_path):
    """As a crash between the two files leaves them."""
    model = edited()
    put_edits(model, prompts_of(2))
    model.save_pretrained(tmp_path)
    expected = logits(model, prompts_of(2))
    put_config(tmp_path, output_scale=2.0)
    for door in (peft, transformers_own):
        assert torch.equal(logits(door(tmp_path).eval(), prompts_of(2)), expected)
    assert torch.equal(logits(peft(tmp_path), unrelated()), logits(tiny(), unrelated()))
