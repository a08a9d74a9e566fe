"""Write an adapter so that a crash, or a full disk, costs nothing that was there."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from peft import PeftModel


def save_adapter(model: PeftModel, adapter_name: str, entries: list[dict], directory: Path) -> None:
    """
    Save an adapter and its ledger to `directory`.

    The files are complete in a folder beside it before the first of them replaces an old one. The weights come first: a
    loader takes all sizes from them, should it find them beside an older config.

    Raises:
        OSError: If the folder cannot be written; what it held is untouched.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as name:
        draft = Path(name)
        model.save_pretrained(draft, selected_adapters=[adapter_name])
        written = draft if adapter_name == "default" else draft / adapter_name
        lines = [json.dumps({"id": entry["id"], **entry["edit"]}, ensure_ascii=False) + "\n" for entry in entries]
        (written / "edits.jsonl").write_text("".join(lines), encoding="utf-8")
        for path in sorted(written.iterdir(), key=lambda path: path.suffix != ".safetensors"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(path, directory / path.name)
