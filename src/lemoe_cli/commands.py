"""What the commands do."""

from __future__ import annotations

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import typer
from huggingface_hub import get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from peft import PeftConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from lemoe_hf import (
    Edit,
    EditEvaluator,
    EditingError,
    ELDERConfig,
    LEMoEConfig,
    LifelongEditor,
    MEMoEConfig,
    plan_order,
    read_edits,
)
from lemoe_hf.card import write_figures
from lemoe_hf.display import as_json as json_of
from lemoe_hf.display import visible
from lemoe_hf.editing.ordering import OrderBy
from lemoe_hf.editing.parallel import processes
from lemoe_hf.editing.push import push_folder
from lemoe_hf.editing.save import WEIGHTS, holds_adapter, tell, writing
from lemoe_hf.tuners.config import EditingConfig
from lemoe_hf.tuners.saved import checked_ledger


METHODS: dict[str, type[EditingConfig]] = {"lemoe": LEMoEConfig, "memoe": MEMoEConfig, "elder": ELDERConfig}

out, err = Console(), Console(stderr=True)

CONFIGS = {"lemoe": LEMoEConfig, "elder": ELDERConfig}


@contextmanager
def reported():
    """Tell an expected error in one line, and leave with code 1."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except (ValueError, TypeError, KeyError, OSError, EditingError, SafetensorError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        lines = "\n".join(map(visible, str(message).split("\n")))
        err.print(f"error: {lines}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


def show(rows: list[dict], title: str, as_json: bool) -> None:
    if as_json:
        print(json_of(rows))
        return
    table = Table(title=Text(visible(title)))
    for name in rows[0] if rows else ():
        table.add_column(name, overflow="fold")
    for row in rows:
        values = [f"{value:.4f}" if isinstance(value, float) else visible(value) for value in row.values()]
        table.add_row(*map(Text, values))
    out.print(table)


def adapter_config(adapter: Path) -> EditingConfig:
    """The config of a saved adapter of this package.

    Raises:
        ValueError: If the folder holds none, half of one, a damaged one, or one of another method.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise ValueError(f"{adapter} holds no adapter: there is no adapter_config.json. Make one with `lemoe edit`.")
    try:
        config = PeftConfig.from_pretrained(str(adapter))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{adapter / 'adapter_config.json'} is damaged ({error}). Restore it from a copy.") from None
    if not isinstance(config, EditingConfig):
        known = " or ".join(name.upper() for name in METHODS)
        raise ValueError(f"{adapter} is an adapter of type {config.peft_type}, not {known}.")
    if not (adapter / WEIGHTS).is_file():
        raise ValueError(
            f"{adapter} is incomplete: there is no {WEIGHTS}. Run `lemoe edit` again, or restore it from a copy."
        )
    return config


def load_editor(adapter: Path, model: str | None) -> LifelongEditor:
    """The edited model, from the adapter's folder and its base model."""
    name = model or adapter_config(adapter).base_model_name_or_path
    if not name:
        raise ValueError(f"The adapter in {adapter} does not name its base model; pass it with --model.")
    return open_editor(name, adapter)


def open_editor(name: str, adapter: Path, method: str | None = None) -> LifelongEditor:
    """
    An editor on the adapter in a folder, or on a new one where the folder has none.

    Raises:
        ValueError: If the folder holds something else, or an adapter of another method than the one asked for.
    """
    tokenizer = AutoTokenizer.from_pretrained(name)
    exists = holds_adapter(adapter)
    if exists:
        there = adapter_config(adapter)
        if method and not isinstance(there, METHODS[method]):
            raise ValueError(
                f"{adapter} is an adapter of type {there.method}, and cannot go on as {method.upper()}. Leave --method "
                f"out, or pass another folder to --adapter."
            )
    base = AutoModelForCausalLM.from_pretrained(name)
    if processes().num_processes > 1:
        base.to(processes().device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if not exists:
        config = METHODS[method or "lemoe"](base_model_name_or_path=name)
        return LifelongEditor(get_peft_model(base, config), tokenizer)
    try:
        loaded = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    except SafetensorError as error:
        raise ValueError(
            f"{adapter / 'adapter_model.safetensors'} is damaged ({error}). Restore it from a copy, or make the edits of "
            f"{adapter / 'edits.jsonl'} again."
        ) from None
    return LifelongEditor(loaded, tokenizer)


def alone(adapter: Path):
    """Inside, no other process writes to an adapter that is loaded, and saved, here."""
    return writing(adapter, seconds=0) if processes().is_main_process else nullcontext()


def edit(model: str, edits: Path, adapter: Path, step: int, order: OrderBy, method: str | None, as_json: bool) -> None:
    with reported():
        # Of several edits of one prompt the last one counts, so that the same command can be repeated.
        wanted = list({item.prompt.strip(): item for item in read_edits(edits)}.values())
        holds_adapter(adapter)  # or nothing: what is there otherwise is left alone, a lock included
        with alone(adapter):
            make(wanted, model, adapter, step, order, method, as_json)


def make(
    wanted: list[Edit],
    model: str,
    adapter: Path,
    step: int,
    order: OrderBy,
    method: str | None,
    as_json: bool,
) -> None:
    here = processes()
    editor = open_editor(model, adapter, method)
    editor.arguments.share_out = True
    # Planned are all edits, also those that are there already: a run that was cut off goes on in the same order.
    with err.status("planning the order"):
        plan = plan_order(wanted, editor.model, editor.tokenizer, order, step)
    wanted = [wanted[i] for i in plan.permutation]
    with err.status("looking at how the base model tells questions apart; once for a base model"):
        editor.prepare()
    here.wait_for_everyone()  # what they have read is about to be written
    if here.is_main_process and holds_adapter(adapter):
        tell(editor.edits(), adapter)
    there = [entry["edit"] for entry in editor.edits() if "edit" in entry]
    current = {old["prompt"].strip(): old["target_new"].strip() for old in there}
    new = [item for item in wanted if current.get(item.prompt.strip()) != item.target_new.strip()]
    rows: list[dict] = []
    columns = (TextColumn("editing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, disable=not (here.is_main_process and err.is_terminal)) as progress:
        task = progress.add_task("", total=len(new))
        for first in range(0, len(new), step):
            result = editor.edit(new[first : first + step])
            if here.is_main_process:
                editor.save_pretrained(adapter)
                rows += result.rows()
                progress.advance(task, len(result))
            here.wait_for_everyone()
    known = len(wanted) - len(new)
    title = f"{len(new)} edits made" + (f", {known} were there already" if known else "") + f"; saved to {adapter}"
    if here.is_main_process:
        show(rows, title, as_json)


def generate(prompts: list[str], adapter: Path, model: str | None, max_new_tokens: int, as_json: bool) -> None:
    with reported():
        editor = load_editor(adapter, model)
        edited = editor.answers(prompts, max_new_tokens)
        with editor.model.disable_adapter():
            base = editor.answers(prompts, max_new_tokens)
        rows = [
            {"prompt": prompt, "answer": after.strip(), "base model": before.strip()}
            for prompt, after, before in zip(prompts, edited, base, strict=True)
        ]
        show(rows, "Answers", as_json)


def evaluate(
    adapter: Path,
    model: str | None,
    edits: Path | None,
    measures: list[str],
    work: Path | None,
    on_card: bool,
    as_json: bool,
) -> None:
    with reported():
        path = edits or adapter / "edits.jsonl"
        if not path.is_file():
            raise ValueError(f"There is no {path}. Pass the edits to measure with --edits.")
        evaluator = EditEvaluator(read_edits(path), share_out=True, measures=measures, work=work)
        editor = load_editor(adapter, model)
        report = evaluator.report(editor.model, editor.tokenizer, edits_made=len(editor.edits()))
        if not processes().is_main_process:
            return
        if on_card:
            write_figures(adapter, report)
        figures = {"num_edits": report["num_edits"], **report["measures"]}
        if as_json:
            print(json.dumps(figures, indent=2))
        else:
            rows = [{"measure": key, "value": value} for key, value in figures.items()]
            show(rows, f"After all edits of {path}", False)


def inspect(adapter: Path, prompts: list[str], model: str | None, as_json: bool) -> None:
    with reported():
        if prompts:
            editor = load_editor(adapter, model)
            explained = [editor.explain(prompt) for prompt in prompts]
            if as_json:
                print(json_of([vars(item) for item in explained]))
            else:
                for item in explained:
                    out.print(visible(item), markup=False, highlight=False)
            return
        config = adapter_config(adapter)
        entries = checked_ledger(adapter, config)
        rows = [{"id": entry["id"], "expert": entry["expert"], **entry.get("edit", {})} for entry in entries]
        keys = ("id", "expert", "prompt", "target_new", "subject")
        keys += ("aliases",) if any("aliases" in row for row in rows) else ()
        beside = config.target_modules
        beside = beside if isinstance(beside, str) else ", ".join(sorted(beside or ()))
        num_experts = len({entry["expert"] for entry in entries})
        title = f"{len(rows)} edits ({config.method}) in {num_experts} experts beside {beside}"
        show([{key: row.get(key, "") for key in keys} for row in rows], title, as_json)


def undo(edit_ids: list[int], adapter: Path, model: str | None, as_json: bool) -> None:
    with reported():
        adapter_config(adapter)
        with alone(adapter):
            editor = load_editor(adapter, model)
            undone = [editor.undo(edit_id) for edit_id in edit_ids]
            editor.save_pretrained(adapter)
        rows = [{"id": entry["id"], **entry.get("edit", {})} for entry in undone]
        show([{key: row.get(key, "") for key in ("id", "prompt", "target_new")} for row in rows], "Undone", as_json)


def push(adapter: Path, repo: str, push_edits: bool, private: bool, revision: str | None, as_json: bool) -> None:
    with reported():
        adapter_config(adapter)
        if get_token() is None:
            raise ValueError(
                "There is no token of the Hugging Face Hub. Make one at https://huggingface.co/settings/tokens that may "
                "write, then run `hf auth login`, or set HF_TOKEN."
            )
        try:
            commit = push_folder(adapter, repo, push_edits=push_edits, private=private or None, revision=revision)
        except HfHubHTTPError as error:
            raise ValueError(refused(error, repo)) from None
        except HTTPError as error:
            raise ValueError(f"The Hugging Face Hub cannot be reached ({error}). Try again later.") from None
        rows = [{"repo": commit.repo_url.repo_id, "revision": commit.oid, "url": commit.commit_url}]
        show(rows, "Pushed" if push_edits else "Pushed without the texts of the edits", as_json)


def refused(error: HfHubHTTPError, repo: str) -> str:
    """What the Hub's refusal means."""
    status = error.response.status_code
    reason = error.server_message or str(error)
    if status == 401:
        return (
            f"The Hub does not accept the token ({reason}). Run `hf auth login` again, or set HF_TOKEN to a valid one."
        )
    if status == 403:
        return f"The token may not write to {repo} ({reason}). Take a repository of your own, or a token that may."
    return f"The Hub refuses ({status}): {reason}"
