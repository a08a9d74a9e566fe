"""Share an adapter on the Hugging Face Hub, with or without the texts of its edits."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from peft import PeftModel

from ..card import ADAPTER, complete_card, is_on_hub
from ..tuners.ledger import read_ledger
from ..tuners.saved import layer_of, withhold_texts
from .save import save_adapter


CONFIG, WEIGHTS, CARD, EDITS = "adapter_config.json", "adapter_model.safetensors", "README.md", "edits.jsonl"


def push_model(
    model: PeftModel,
    repo_id: str,
    *,
    adapter_name: str | None = None,
    entries: list[dict] | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    **kwargs: Any,
) -> CommitInfo:
    """
    Push a LEMoE adapter to the Hugging Face Hub, as [`push_folder`] does with a saved one.

    It is what `model.push_to_hub` and `editor.push_to_hub` do. What people wrote into the card on the Hub stays.

    Args:
        model ([`~peft.PeftModel`]): The model.
        repo_id (`str`): Name of the repository, which is made if need be.
        adapter_name (`str`, *optional*): The adapter; by default the active one.
        entries (`list[dict]`, *optional*): Its ledger, for `edits.jsonl`; by default as the model has it.
        private, token, revision, kwargs: As in [`push_folder`].

    Raises:
        HfHubHTTPError: If the Hub refuses, for lack of a valid token for example.
    """
    name, api = model.base_model._adapter(adapter_name), HfApi(token=token, library_name="lemoe_hf")
    repo_id = make_repository(api, repo_id, private, revision)
    with TemporaryDirectory() as folder:
        draft = Path(folder)
        if api.file_exists(repo_id, CARD, revision=revision):
            shutil.copy(api.hf_hub_download(repo_id, CARD, revision=revision), draft)
        save_adapter(model, name, model.base_model.ledger(name) if entries is None else entries, draft)
        return push_folder(draft, repo_id, token=token, revision=revision, **kwargs)


def push_folder(
    directory: str | Path,
    repo_id: str,
    *,
    push_edits: bool = True,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
    max_shard_size: int | str | None = None,
) -> CommitInfo:
    """
    Push a saved adapter to the Hugging Face Hub: its weights, config, card and `edits.jsonl`, in one commit.

    Every push that changes something is a new revision, and `PeftModel.from_pretrained(base, repo_id, revision=...)` loads any
    of them. The base model is not needed, the folder is left as it is, and nothing else that lies there is pushed.

    With `push_edits=False` nothing tells what was edited in words: no `edits.jsonl`, no table on the card, and in the list of
    edits inside the weights only the `id` and the `expert` of each. Such an adapter routes, answers, takes further edits and
    undoes by id as any other. It is not encrypted: the weights hold tokens and letters of each edit's prompt, subject,
    aliases and target, by which prompts are found and answers end, and which anyone can turn into text again, and the model
    gives the answers to whoever asks. Revisions that were pushed with the texts keep them.

    Args:
        directory (`str` or `Path`): The adapter's folder.
        repo_id (`str`): Name of the repository, which is made if need be.
        push_edits (`bool`, *optional*, defaults to `True`): Whether the texts of the edits go with it.
        private (`bool`, *optional*): Whether a new repository is private; by default as its owner has set it.
        token (`str` or `bool`, *optional*): Token of the Hub; by default that of `hf auth login` or `HF_TOKEN`.
        revision (`str`, *optional*): Branch to push to, made if need be; by default `main`.
        commit_message (`str`, *optional*): By default the number of edits.
        commit_description (`str`, *optional*): More about it.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
        tags (`list[str]`, *optional*): Further tags of the card.
        max_shard_size (*optional*): Taken as transformers takes it, and of no effect: an adapter is one file.

    Raises:
        ValueError: If the folder holds no adapter, or a damaged one.
        HfHubHTTPError: If the Hub refuses, for lack of a valid token for example.
    """
    read_ledger(Path(directory, WEIGHTS))
    api = HfApi(token=token, library_name="lemoe_hf")
    repo_id = make_repository(api, repo_id, private, revision)
    with TemporaryDirectory() as folder:
        draft = Path(folder)
        for name in (CONFIG, WEIGHTS, CARD, EDITS):
            if Path(directory, name).is_file():
                shutil.copy(Path(directory, name), draft)
        num_edits = prepare(draft, repo_id, push_edits, tags or [])
        operations: list = [CommitOperationAdd(path.name, path) for path in sorted(draft.iterdir())]
        if not push_edits and api.file_exists(repo_id, EDITS, revision=revision):
            operations.append(CommitOperationDelete(EDITS))
        return api.create_commit(  # all files at once: a revision is never half an adapter
            repo_id,
            operations,
            commit_message=commit_message or f"{num_edits} edits",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def make_repository(api: HfApi, repo_id: str, private: bool | None, branch: str | None) -> str:
    """Make a repository and a branch where there are none, and return the repository's full name."""
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if branch is not None:
        api.create_branch(repo_id, branch=branch, exist_ok=True)
    return repo_id


def prepare(draft: Path, repo_id: str, push_edits: bool, tags: list[str]) -> int:
    """Make the files of a saved adapter ready for everybody to see, and return the number of its edits."""
    config = json.loads((draft / CONFIG).read_text())
    base_model = config["base_model_name_or_path"]
    if not is_on_hub(base_model):
        warnings.warn(
            f"The adapter's base model is {base_model!r}, which others cannot load by that name. If it is on the Hub, set "
            f"`base_model_name_or_path` in the adapter's config to its name there, and push again.",
            stacklevel=3,
        )
    if not push_edits:
        withhold_edits(draft)
    entries = read_ledger(draft / WEIGHTS)
    (draft / CARD).touch()
    told = (config["base_model_fingerprint"], config["peft_type"], config["deferral"])
    complete_card(draft, base_model, entries, *told)
    card = ModelCard.load(draft / CARD, ignore_metadata_errors=True)
    card.text = card.text.replace(f'"{ADAPTER}"', f'"{repo_id}"')
    card.data.tags = sorted({*card.data.tags, *tags})
    card.save(draft / CARD)
    return len(entries)


def withhold_edits(directory: Path) -> None:
    """Take the texts of the edits out of the files of a saved adapter, other than its card."""
    config = json.loads((directory / CONFIG).read_text())
    config["num_ledger_bytes"] = withhold_texts(directory / WEIGHTS, layer_of(config["peft_type"]))
    (directory / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True))
    (directory / EDITS).unlink(missing_ok=True)
