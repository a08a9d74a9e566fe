"""Damage stored adapters in every way that comes to mind, load them through every door, and count what happens.

    python benchmarks/mutations.py --number 10000

On a tiny random model of the tests. Right is an error that names the damage, or the same answers. What a config is there to
set may be set, and is counted by itself; so are weights whose digest was taken away: they are another adapter, which must be
whole.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from peft import PeftModel
from report import RESULTS, command, write
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lemoe_hf import LEMoEConfig
from lemoe_hf.tuners.saved import checked_ledger
from tiny import edited, logits, prompts_of, put_edits, tiny, unrelated
from worded import put_vocabulary, vocabulary_of


WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PROMPTS = prompts_of(3)
# Fields that are there to be set, and what they are set to changes answers, or nothing.
SETTINGS = {
    "lam",
    "threshold",
    "normalize",
    "deferral",
    "relation_gate",
    "relation_threshold",
    "init_weights",
    "routing",
}
VALUES = (
    *(
        None,
        "",
        "x",
        True,
        False,
        [],
        {},
        [1],
        ["x"],
        -1,
        0,
        1,
        2,
        1.5,
        -0.0,
        1e-30,
        1e30,
        1e308,
        2**31 - 1,
        2**31,
        10**9,
    ),
    *(10**40, math.nan, math.inf, -math.inf, "../..", "\x1b[2J", "(", ".*", {"a": {"b": []}}),
)
NUMBERS = (0, 1, -1, 2, 3, 77, 255, 2**15, 2**31 - 1, -(2**31), 0.5, 1.5, 1e-30, 1e30, math.nan, math.inf, -math.inf)
DTYPES = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.float32, torch.bfloat16, torch.float64, torch.bool)


def made(folder: Path) -> None:
    """An adapter of three edits, with all that one can have but what a real model tells of relations."""
    model = edited()
    put_edits(model, PROMPTS, subjects=[(2, 4)] * 3, targets=[[30], [31, 32], [33]])
    put_vocabulary(model, vocabulary_of(marks=(40,), reply=(50, 51)))
    model.base_model.store([], [])
    model.save_pretrained(folder)


def mutate(folder: Path, random: Random) -> str:
    """Damage a saved adapter in one way, and tell of what kind it was."""
    kind = random.choice(
        ("config", "config", "config bytes", "tensor", "tensor", "tensor unsealed", "ledger", "bytes")
    )
    if kind == "config":
        return mutate_config(folder / CONFIG, random)
    if kind in ("config bytes", "bytes"):
        path = folder / (CONFIG if kind == "config bytes" else WEIGHTS)
        path.write_bytes(mutate_bytes(path.read_bytes(), random))
        return kind
    tensors = load_file(folder / WEIGHTS)
    keys = sorted(key for key in tensors if (kind != "ledger") or "ledger" in key)
    key = random.choice(keys)
    if kind == "ledger":
        damaged = mutate_bytes(tensors[key].numpy().tobytes(), random)
        tensors[key] = torch.tensor(list(damaged), dtype=torch.uint8)
        kind = random.choice(("ledger", "ledger unsealed"))
    elif random.random() < 0.1:
        del tensors[key]
    else:
        tensors[key] = mutate_tensor(tensors[key], random)
    if kind.endswith("unsealed"):
        tensors |= {key: torch.zeros(32, dtype=torch.uint8) for key in tensors if key.endswith("stamp.digest")}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return kind


def mutate_config(path: Path, random: Random) -> str:
    config = json.loads(path.read_text())
    field = random.choice(sorted(config))
    if random.random() < 0.1:
        del config[field]
    else:
        config[field] = random.choice(VALUES)
    path.write_text(json.dumps(config))
    return "config"


def mutate_bytes(data: bytes, random: Random) -> bytes:
    place = random.randrange(max(len(data), 1))
    return random.choice(
        (
            lambda: data[:place],
            lambda: data[:place] + bytes([random.randrange(256)]) + data[place + 1 :],
            lambda: data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :],
            lambda: data[:place] + random.randbytes(8) + data[place:],
            lambda: data[:place] + data[place:][random.randrange(1, 20) :],
            lambda: data + data[place:],
            lambda: data[:place] + b"[" * 5000 + data[place:],
        )
    )()


def mutate_tensor(tensor: torch.Tensor, random: Random) -> torch.Tensor:
    def put(value: float) -> torch.Tensor:
        changed = tensor.clone()
        if changed.numel():
            flat = changed.view(-1)
            flat[random.randrange(len(flat))] = (
                torch.tensor(value).nan_to_num().clamp(-(2**31), 2**31 - 1).to(changed.dtype)
                if not changed.is_floating_point()
                else torch.tensor(value, dtype=changed.dtype)
            )
        return changed

    return random.choice(
        (
            lambda: put(random.choice(NUMBERS)),
            lambda: put(random.choice(NUMBERS)),
            lambda: tensor[: random.randrange(len(tensor) + 1)].clone() if tensor.dim() else tensor,
            lambda: torch.cat([tensor, tensor[:1]]),
            lambda: tensor.to(random.choice(DTYPES)),
            lambda: tensor.flip(0),
            lambda: tensor[None].clone(),
            lambda: torch.zeros_like(tensor),
            lambda: (tensor.roll(1, -1) if tensor.numel() else tensor).contiguous(),
        )
    )()


# ------------------------------------------------------------------------------------------------------------------ doors


def by_peft(folder: Path):
    return PeftModel.from_pretrained(tiny(), folder)


def beside_another(folder: Path):
    model = edited()
    model.load_adapter(folder, adapter_name="other")
    model.set_adapter("other")
    return model


def by_transformers(folder: Path):
    model = tiny()
    model.load_adapter(folder)
    return model


def without_a_model(folder: Path) -> None:
    checked_ledger(folder, LEMoEConfig.from_pretrained(folder))


DOORS: tuple[Callable, ...] = (by_peft, by_peft, beside_another, by_transformers, without_a_model)
CLEAN = (ValueError, OSError, SafetensorError)


def used(door: Callable, folder: Path) -> list[torch.Tensor]:
    """What comes out of an adapter: logits of its own prompts, and of others; and it takes an edit, and is saved."""
    model = door(folder)
    if model is None:
        return []
    model.eval()
    found = [logits(model, PROMPTS), logits(model, unrelated())]
    if isinstance(model, PeftModel):
        model.base_model.ledger()
        put_edits(model, [[7, 8, 9]])
        model.base_model.remove_edit(model.base_model.ledger()[0]["id"])
        logits(model, PROMPTS)
    return found


def outcome(door: Callable, folder: Path, expected: list[torch.Tensor], config: dict, kind: str) -> tuple[str, str]:
    """What happens, in a word, and what was said."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = used(door, folder)
    except Exception as error:
        told = f"{type(error).__name__}: {str(error)[:200]}"
        where = traceback.extract_tb(error.__traceback__)[-1].filename
        if isinstance(error, CLEAN) or "size mismatch" in str(error) or "ignore_mismatched_sizes" in str(error):
            return "error that names the damage", told
        # What PEFT and Python make of a file before any method is asked.
        others = "peft" in where or "/json/" in where or "huggingface_hub" in where
        return ("error of PEFT's" if others and kind.startswith("config") else "raw error"), told
    if all(torch.equal(a, b) for a, b in zip(found, expected, strict=False)):
        return "the same answers", ""
    if kind.endswith("unsealed"):
        return "another adapter, whole", ""
    if kind.startswith("config"):
        now = json.loads((folder / CONFIG).read_text())
        changed = {key for key in config.keys() | now.keys() if config.get(key) != now.get(key)}
        if changed and changed <= SETTINGS:
            return "another setting", ""
        return "other answers", f"{changed}: {[now.get(key) for key in changed]}"
    return "other answers", ""


def tried(seed: int | Random, whole: Path, folder: Path, expected: list[torch.Tensor]) -> tuple[str, str, str]:
    """One adapter, damaged and loaded: its kind of damage, what happened, and what was said."""
    random = Random(seed) if isinstance(seed, int) else seed
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    kind, door = mutate(folder, random), random.choice(DOORS)
    config = json.loads((whole / CONFIG).read_text())
    found, told = outcome(door, folder, expected, config, kind)
    return kind, found, f"{door.__name__}: {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--output", default=RESULTS / "mutations.json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    counts: dict[str, Counter] = {}
    wrong: list[dict] = []
    with tempfile.TemporaryDirectory() as name:
        whole, folder = Path(name, "whole"), Path(name, "damaged")
        made(whole)
        expected = used(by_peft, whole)
        for seed in range(args.first, args.first + args.number):
            kind, found, told = tried(seed, whole, folder, expected)
            counts.setdefault(kind, Counter())[found] += 1
            if found in ("raw error", "other answers", "error of PEFT's"):
                wrong.append({"seed": seed, "kind": kind, "found": found, "told": told})
            if seed % 250 == 249 or seed == args.first + args.number - 1:
                totals = sum(counts.values(), Counter())
                report = {"command": command(), "torch": torch.__version__, "number": seed + 1 - args.first}
                report |= {
                    "counts": dict(totals),
                    "by kind": {key: dict(each) for key, each in sorted(counts.items())},
                }
                write(report | {"examples": wrong[:60]}, args.output)


if __name__ == "__main__":
    main()
