"""A saved adapter, looked at without the model that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..routing.together import FILE, RESTORE
from .ledger import KEY, Bytes, lines_of, read_ledger
from .schema import check, digest, parsed


if TYPE_CHECKING:
    from .config import EditingConfig
    from .layer import EditingLayer


def layer_of(peft_type: str) -> type[EditingLayer]:
    """What a method puts beside a module."""
    return PEFT_TYPE_TO_TUNER_MAPPING[peft_type].tuner_layer_cls


def tensors_of(path: Path, prefix: str) -> list[dict[str, torch.Tensor]]:
    """
    The tensors of each layer in an adapter's weights, by their names in it.

    Raises:
        ValueError: If the file is not there, or damaged.
    """
    if not path.is_file():
        raise ValueError(f"There is no {path}: the adapter is not complete.")
    layers: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118
                layer, found, name = key.partition(f".{prefix}")
                if found:
                    layers.setdefault(layer, {})[prefix + name] = file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). {RESTORE}") from None
    return list(layers.values())


def checked_ledger(folder: Path, config: EditingConfig) -> list[dict]:
    """
    The ledger of a saved adapter, of which everything is looked at that can be without its model.

    Raises:
        ValueError: If the weights are not there, are damaged, or belong to another method.
    """
    method = layer_of(config.peft_type)
    layers = tensors_of(folder / FILE, method.prefix)
    check(method, layers)
    lead = next(tensors for tensors in layers if f"{method.prefix}ledger.bytes" in tensors)
    return parsed(lead[f"{method.prefix}ledger.bytes"], method.prefix)


def digest_of_file(path: Path, method: type[EditingLayer]) -> bytes:
    """
    The digest of what an adapter's weights hold, as they tell it or, if they do not, as it is.

    Raises:
        ValueError: If the file is damaged.
    """
    layers = tensors_of(path, method.prefix)
    stamped = next((tensors[key] for tensors in layers for key in tensors if key.endswith("_stamp.digest")), None)
    return bytes(stamped.tolist()) if stamped is not None and bool(stamped.any()) else digest(method, layers)


def withhold_texts(path: Path, method: type[EditingLayer]) -> int:
    """
    Leave nothing of a saved adapter's ledger but the `id` and the `expert` of each edit.

    Returns:
        The number of bytes that the ledger has now, which the config must tell.
    """
    kept = [{"id": entry["id"], "expert": entry["expert"]} for entry in read_ledger(path)]
    tensors, ledger = load_file(path), Bytes()
    ledger.write(lines_of(kept))
    tensors |= {key: ledger.bytes for key in tensors if key.endswith(KEY)}
    save_file(tensors, path, {"format": "pt"})
    found = torch.tensor(list(digest(method, tensors_of(path, method.prefix))), dtype=torch.uint8)
    tensors |= {key: found for key in tensors if key.endswith("_stamp.digest")}
    save_file(tensors, path, {"format": "pt"})
    return len(ledger.bytes)
