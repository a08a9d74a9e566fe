"""Write an adapter so that a crash, or a full disk, costs nothing that was there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

from peft import PeftModel

from ..card import keep_metadata


DRAFT = ".draft-"


def save_adapter(model: PeftModel, adapter_name: str, entries: list[dict], directory: Path) -> None:
    """
    Save an adapter and its ledger to `directory`.

    The files are complete in a folder within it before the first of them replaces an old one. The config comes first:
    beside older weights it does no harm, since a loader takes all sizes from the weights, and newer weights need it.

    Raises:
        OSError: If the folder cannot be written; what it held is untouched.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    for left_by_a_crash in directory.glob(f"{DRAFT}*"):
        shutil.rmtree(left_by_a_crash)
    with tempfile.TemporaryDirectory(prefix=DRAFT, dir=directory) as name:
        draft = Path(name)
        written = draft if adapter_name == "default" else draft / adapter_name
        written.mkdir(exist_ok=True)
        if (directory / "README.md").is_file():  # what people wrote there stays
            shutil.copy(directory / "README.md", written)
        if written != draft:  # PEFT itself writes none for adapters of another name
            model.create_or_update_model_card(written)
        model.save_pretrained(draft, selected_adapters=[adapter_name])
        if (directory / "README.md").is_file():
            keep_metadata(written, directory / "README.md")
        told = [{"id": entry["id"], **entry["edit"]} for entry in entries if "edit" in entry]
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in told]
        (written / "edits.jsonl").write_text("".join(lines), encoding="utf-8")
        paths = [path for path in written.iterdir() if path.is_file()]
        for path in sorted(paths, key=lambda path: path.name != "adapter_config.json"):
            with path.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(path, directory / path.name)
