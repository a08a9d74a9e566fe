"""Write an adapter so that a crash, a full disk, or another writer, costs nothing that was there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from peft import PeftModel
from safetensors import SafetensorError

from ..card import keep_metadata
from ..routing.together import FILE as WEIGHTS
from ..tuners.saved import digest_of_file


CONFIG, CARD, EDITS = "adapter_config.json", "README.md", "edits.jsonl"
DRAFT, LOCK = ".lemoe-draft-", ".lemoe.lock"


@contextmanager
def writing(directory: Path, seconds: float = 30):
    """
    Inside, nobody else of this package writes to a folder, which is made if need be.

    Raises:
        OSError: If somebody else does for longer than `seconds`, or the folder cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / LOCK, is_singleton=True)  # one a process: whoever holds it may save
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        raise OSError(
            f"Another process is writing to {directory} (it holds {LOCK}). Wait until it is done, or take another folder."
        ) from None
    try:
        yield
    finally:
        lock.release()


def holds_adapter(directory: Path) -> bool:
    """
    Whether there is an adapter in a folder. What a crash in the first save has left is none.

    Raises:
        ValueError: If there is half an adapter, or something else.
    """
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    if WEIGHTS in names and CONFIG not in names:
        raise ValueError(f"{directory} is incomplete: there is {WEIGHTS}, and no {CONFIG}. Restore it from a copy.")
    others = {name for name in names - {CONFIG, CARD, EDITS, LOCK} if not name.startswith(DRAFT)}
    if WEIGHTS not in names and (others or (names & {CARD, EDITS} and CONFIG not in names)):
        raise ValueError(f"{directory} is not empty and holds no adapter. Take another folder.")
    return WEIGHTS in names


def save_adapter(
    model: PeftModel, adapter_name: str, entries: list[dict], directory: Path, overwrite: bool = False
) -> None:
    """
    Save an adapter and its ledger to `directory`.

    The files are complete in a folder within it before the first of them replaces an old one. The config comes first:
    beside older weights it does no harm, since sizes and scale are taken from the weights, and a config without weights is no
    adapter yet.

    Raises:
        OSError: If the folder cannot be written; what it held is untouched.
        ValueError: If the folder holds an adapter that is not this one, as it was loaded or last saved, and `overwrite` is not
            set.
    """
    directory = directory.resolve()
    with writing(directory):
        if not overwrite:
            check_own(model, adapter_name, directory)
        for left_by_a_crash in directory.glob(f"{DRAFT}*"):  # nobody else is writing
            if left_by_a_crash.is_dir() and not left_by_a_crash.is_symlink():
                shutil.rmtree(left_by_a_crash, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=DRAFT, dir=directory) as name:
            written = draft(model, adapter_name, entries, Path(name), directory / CARD)
            paths = [path for path in written.iterdir() if path.is_file()]
            for path in sorted(paths, key=lambda path: path.name != CONFIG):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                os.replace(path, directory / path.name)


def check_own(model: PeftModel, adapter_name: str, directory: Path) -> None:
    lead = model.base_model.layers_of(adapter_name)[0]
    if not (directory / WEIGHTS).is_file():
        return
    try:
        found = digest_of_file(directory / WEIGHTS, type(lead))
    except ValueError:
        found = None
    if found not in lead.stamp(adapter_name).files:
        raise ValueError(
            f"{directory} holds an adapter that this one would replace: it was not loaded from there, or somebody else has "
            f"written there since. Load it and edit that, save to another folder, or pass `overwrite=True`."
        )


def draft(model: PeftModel, adapter_name: str, entries: list[dict], folder: Path, card: Path) -> Path:
    """Write everything that is saved to a folder, with a card that people wrote, and return where it is."""
    written = folder if adapter_name == "default" else folder / adapter_name
    written.mkdir(exist_ok=True)
    kept = takes_up(model, written, card)
    if not kept and written != folder:  # PEFT itself writes none for adapters of another name
        model.create_or_update_model_card(written)
    try:
        model.save_pretrained(folder, selected_adapters=[adapter_name])
    except SafetensorError as error:
        raise OSError(f"{WEIGHTS} cannot be written ({error}).") from error
    if kept:
        keep_metadata(written, card)
    elif card.is_file():
        (written / CARD).unlink(missing_ok=True)
    (written / EDITS).write_text(told(entries), encoding="utf-8")
    return written


def takes_up(model: PeftModel, written: Path, card: Path) -> bool:
    """Whether there is a card that people wrote, and can be brought up to date: it is copied to where that is done."""
    if not card.is_file():
        return False
    shutil.copy(card, written)
    try:
        model.create_or_update_model_card(written)
        keep_metadata(written, card)
    except Exception as error:  # whatever somebody may have written there
        (written / CARD).unlink()
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        warnings.warn(
            f"{card} cannot be read as a model card ({why}); it is left as it is. "
            f"Mend it, or remove it to get a new one.",
            stacklevel=4,
        )
        return False
    return True


def told(entries: list[dict]) -> str:
    """The ledger for people to read, one edit a line."""
    lines = [{"id": entry["id"], **entry["edit"]} for entry in entries if "edit" in entry]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def tell(entries: list[dict], directory: Path) -> None:
    """Bring `edits.jsonl` up to date, where a crash has left an older one."""
    path, text = directory / EDITS, told(entries)
    if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") != text:
        with writing(directory), tempfile.TemporaryDirectory(prefix=DRAFT, dir=directory) as name:
            (Path(name) / EDITS).write_text(text, encoding="utf-8")
            os.replace(Path(name) / EDITS, path)
