"""What an editor needs to go on with its edits, beside the LoRA adapter that they are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..card import cell, with_section
from ..data.edit import Edit
from .arguments import RankOneArguments
from .update import Update


VERSION = 1
VECTORS = ("key", "value", "left", "right")
MOST_ROWS = 50
Made = list[tuple[int, Edit, Update]]


def save_edits(folder: Path, made: Made, arguments: RankOneArguments, following: int) -> None:
    """Write `rank_one.json` and `rank_one.safetensors`, and tell in the model card what the adapter is."""
    rows = []
    for number, edit, update in made:
        fields = {name: value for name, value in vars(update).items() if name not in VECTORS}
        rows.append({"id": number, "edit": edit.to_dict(), "update": fields})
    told = {"version": VERSION, "next": following, "arguments": asdict(arguments), "edits": rows}
    tensors = {f"{i}.{name}": getattr(update, name) for i, (_, _, update) in enumerate(made) for name in VECTORS}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "rank_one.safetensors")
    (folder / "rank_one.json").write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    write_card(folder, made)


def load_edits(folder: Path) -> tuple[Made, RankOneArguments, int]:
    """
    Raises:
        ValueError: If the folder holds none, or they are damaged.
    """
    path = folder / "rank_one.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no edits of a RankOneEditor: there is no rank_one.json.")
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tensors = load_file(folder / "rank_one.safetensors")
        if told["version"] != VERSION:
            raise ValueError(f"{path} is of version {told['version']}; this lemoe_hf reads version {VERSION}.")
        made = []
        for i, row in enumerate(told["edits"]):
            vectors: dict[str, Any] = {name: tensors[f"{i}.{name}"] for name in VECTORS}
            made.append((row["id"], Edit(**row["edit"]), Update(**row["update"], **vectors)))
        return made, RankOneArguments(**told["arguments"]), told["next"]
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}). The LoRA adapter beside it can be loaded without it."
        ) from None


def write_card(folder: Path, made: Made) -> None:
    """Tell in PEFT's card what the adapter is, and which edits are in it."""
    path = folder / "README.md"
    if not path.is_file():
        return
    rows = [
        f"| {cell(edit.prompt)} | {cell(edit.target_new)} | {update.layer} |" for _, edit, update in made[-MOST_ROWS:]
    ]
    listed = f", of which the last {MOST_ROWS} are listed here" if len(made) > MOST_ROWS else ""
    text = f"""## Edits

This is a LoRA adapter that nobody trained: each of its ranks is the closed-form solution of one correction of a fact
(ROME and WilKE, arXiv 2202.05262 and 2402.10987), made by `lemoe_hf.RankOneEditor`. It loads and merges as any LoRA adapter,
without that package. Its edits act on every text: what the base model says of other things changes a little as well, more
with each edit.

Edits in this adapter: {len(made)}{listed}.

| prompt | answer | layer |
|---|---|---|
"""
    old = path.read_text(encoding="utf-8")
    path.write_text(with_section(old, text + "\n".join(rows) + "\n"), encoding="utf-8")
