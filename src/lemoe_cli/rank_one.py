"""What the commands about rank-one edits do."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import RankOneArguments, RankOneEditor, read_edits
from lemoe_hf.diagnostics import layer_profile, predict_interference, superposition_report

from .commands import err, out, reported, show


def opened(model: str):
    """A base model and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)


def edit(
    model: str, edits: Path, adapter: Path, step: int, order: str, method: str, layer: int | None, as_json: bool
) -> None:
    """Make rank-one edits, one after the other, and save them as a LoRA adapter; those that are there already stay."""
    with reported():
        if (method == "rome") != (layer is not None):
            raise ValueError(
                "`--method rome` edits one layer: name it with `--layer`."
                if layer is None
                else f"`--method {method}` chooses its layers: leave out `--layer`."
            )
        if order != "none":
            raise ValueError(
                f"`--order {order}` makes batches, and rank-one edits are made one by one. Leave it out; "
                f"`lemoe_hf.diagnostics.plan_by_cost` plans the order of edits in one layer."
            )
        wanted = list({item.prompt.strip(): item for item in read_edits(edits)}.values())
        base, tokenizer = opened(model)
        if (adapter / "rank_one.json").is_file():
            editor = RankOneEditor.from_pretrained(base, tokenizer, adapter)
        elif adapter.exists() and any(adapter.iterdir()):
            raise ValueError(f"{adapter} is not empty and holds no rank-one edits. Pass another folder to --adapter.")
        else:
            editor = RankOneEditor(base, tokenizer, RankOneArguments(layer="auto" if layer is None else layer))
        there = {made["prompt"].strip(): made["target_new"].strip() for made in editor.edits()}
        new = [item for item in wanted if there.get(item.prompt.strip()) != item.target_new.strip()]
        rows = []
        for first in range(0, len(new), step):
            part = new[first : first + step]
            with err.status(f"editing, {first} of {len(new)}"):
                updates = editor.edit(part, layer=layer)
            editor.save_pretrained(adapter)
            rows += [
                {
                    "prompt": item.prompt,
                    "target_new": item.target_new,
                    "layer": update.layer,
                    "change": update.change,
                    "nll": update.nll,
                    "success": update.success,
                }
                for item, update in zip(part, updates, strict=True)
            ]
        known = len(wanted) - len(new)
        title = f"{len(new)} edits made" + (f", {known} were there already" if known else "") + f"; saved to {adapter}"
        show(rows, title, as_json)


def superposition(
    model: str,
    edits: Path,
    layer: int | None,
    protect: Path | None,
    data: Path | None,
    profile: bool,
    plot: Path | None,
    as_json: bool,
) -> None:
    with reported():
        facts = read_edits(edits)
        base, tokenizer = opened(model)
        texts = (
            None if data is None else [line for line in data.read_text(encoding="utf-8").splitlines() if line.strip()]
        )
        with err.status("taking statistics of the layer, once for a model and its data"):
            report = superposition_report(base, tokenizer, facts, layer, texts)
            by_layer = layer_profile(base, tokenizer, facts, data=texts) if profile else []
        harm = None
        if protect is not None:
            with err.status("solving the edits, to tell what they would do to others"):
                harm = predict_interference(base, tokenizer, facts, read_edits(protect), report.layer, data=texts)
        if plot is not None:
            try:
                report.plot(plot, by_layer)
            except ImportError as error:
                raise ValueError(str(error)) from None
        if as_json:
            told = report.to_dict() | ({"profile": by_layer} if profile else {})
            print(json.dumps(told | ({"interference": harm.worst()} if harm else {}), ensure_ascii=False, indent=2))
            return
        out.print(str(report), markup=False, highlight=False)
        if profile:
            show(by_layer, "Layer by layer", False)
        if harm is not None:
            out.print(f"What the edits would do to others:\n{harm}", markup=False, highlight=False)
