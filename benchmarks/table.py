"""Methods beside each other, on the same edits and with the same measures: one command, one row.

    python benchmarks/table.py --row lemoe --model FOLDER --data zsre_1000.jsonl --num-edits 200 --work FOLDER
    python benchmarks/table.py --row grace --model FOLDER --data counterfact_3000.jsonl --num-edits 200 --batch --work FOLDER
    python benchmarks/table.py --row lora --model FOLDER --data knowedit_counterfact_dev.jsonl --num-edits 200 --work FOLDER

Edits come in five steps (lifelong), or all at once (`--batch`), and are measured on the final model. A row is a function in
`ROWS` that takes the base model, its tokenizer, the edits of a step (`size`) and, where a run goes on, the folder it saved
to; it gives an editor, which has a `model`, makes edits (`edit`) and saves them (`save_pretrained`). An editor whose prompts
are other texts than the model's takes its measures itself (`measures`).

- `unedited`: the base model.
- `lemoe`: the defaults of `LEMoEConfig`. `lemoe_paper`: the published setting, an expert a step, at the learning rate and in
  the passes of `paper.py`, since the paper tells no number of steps. `lemoe_repaired`: the same without its three hazards,
  and with deferral.
- `lora`, `ffn`, `retrieval`: those of `baselines.py`, with the setting that was chosen there for 1,000 edits of ZsRE.
- `grace`: that of `grace.py`.

Seconds are those of the process. `kb` is all that is saved, `kb_per_edit` what it is more than before the first edit, an edit.
Records with groups of probes, as KnowEdit's, are measured by group as well. Locality prompts that are about the subject of an
edit are left out, but for those of groups, of which some are meant to be. All is written to `--work` as it comes, and the same
command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from baselines import PASSES, Retrieved, peft_config, train
from grace import GraceEditor
from lifelong import AT_ONCE, drawn, without_counts, without_edited_neighbours
from paper import REPAIRED
from peft import PeftModel, get_peft_model
from report import RESULTS, command, log_progress, write
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, EditEvaluator, EditingArguments, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.data.readers import records
from lemoe_hf.evaluation import versions


STEPS, PAPER_PASSES, PAPER_LEARNING_RATE = 5, 15, 5e-3
GROUPED = ("locality", "portability")


class Editor(Protocol):
    model: Any

    def edit(self, edits: Sequence[Edit]) -> Any: ...

    def save_pretrained(self, folder: Path) -> Any: ...


Row = Callable[[Any, Any, int, Path | None], Editor]


# ------------------------------------------------------------------------------------------------------------------ rows


def of_package(
    base, tokenizer, size: int, saved: Path | None, *, config_of: Callable[[int], Any], arguments=None
) -> LifelongEditor:
    """A method of this package, by its config, which may hang on how many edits come together."""
    if saved is None:
        model = get_peft_model(base, config_of(size))
    else:
        model = PeftModel.from_pretrained(base, str(saved), is_trainable=True)
    editor = LifelongEditor(model, tokenizer, arguments)
    editor.prepare()
    return editor


class Unedited:
    """The base model, as an adapter that edits do nothing to."""

    def __init__(self, base, tokenizer, size: int, saved: Path | None):
        self.model, self.tokenizer = get_peft_model(base, peft_config("ffn", base)).eval(), tokenizer

    def edit(self, edits: Sequence[Edit]) -> None:
        pass

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


class FineTuned:
    """As in `baselines.py`: so many passes over each step, never over earlier ones."""

    def __init__(self, base, tokenizer, size: int, saved: Path | None, baseline: str):
        self.tokenizer, self.baseline = tokenizer, baseline
        torch.manual_seed(0)
        if saved is None:
            self.model = get_peft_model(base, peft_config(baseline, base)).eval()
        else:
            self.model = PeftModel.from_pretrained(base, str(saved), is_trainable=True).eval()

    def edit(self, edits: Sequence[Edit]) -> None:
        train(self.model, self.tokenizer, edits, (), PASSES[self.baseline], chosen(self.baseline), seed=0)
        self.model.eval()

    def save_pretrained(self, folder: Path) -> None:
        self.model.save_pretrained(folder)


class Retrieval(Unedited):
    """As in `baselines.py`: edits are put before the prompts that are about them."""

    def __init__(self, base, tokenizer, size: int, saved: Path | None):
        super().__init__(base, tokenizer, size, saved)
        self.retrieved = Retrieved(self.model, tokenizer, None, [], chosen("retrieval"))
        if saved is not None:
            self.edit([Edit(**edit) for edit in json.loads((saved / "edits.json").read_text())])

    def edit(self, edits: Sequence[Edit]) -> None:
        self.retrieved.add(edits)

    def measures(self, edits: Sequence[Edit], work: Path) -> dict[str, float]:
        self.retrieved.work = work
        return self.retrieved.measures(edits)

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        told = [{"prompt": e.prompt, "target_new": e.target_new, "subject": e.subject} for e in self.retrieved.edits]
        (folder / "edits.json").write_text(json.dumps(told))
        torch.save(self.retrieved.keys, folder / "keys.pt")


def chosen(baseline: str) -> float:
    """The learning rate or threshold that `baselines.py` has found."""
    return json.loads((RESULTS / f"baseline_{baseline}_zsre_1000.json").read_text())["tuning"]["chosen"]


AS_PUBLISHED = replace(EditingArguments.paper(), learning_rate=PAPER_LEARNING_RATE, max_steps=PAPER_PASSES)
ROWS: dict[str, Row] = {
    "unedited": Unedited,
    "lemoe": partial(of_package, config_of=lambda size: LEMoEConfig()),
    "lemoe_paper": partial(
        of_package, config_of=lambda size: LEMoEConfig.paper(edits_per_expert=size), arguments=AS_PUBLISHED
    ),
    "lemoe_repaired": partial(
        of_package,
        config_of=lambda size: LEMoEConfig.paper(edits_per_expert=size, deferral=True, **REPAIRED),
        arguments=AS_PUBLISHED,
    ),
    "lora": partial(FineTuned, baseline="lora"),
    "ffn": partial(FineTuned, baseline="ffn"),
    "retrieval": Retrieval,
    "grace": lambda base, tokenizer, size, saved: GraceEditor(base, tokenizer, saved),
}


# ------------------------------------------------------------------------------------------------------------- one of them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", required=True, choices=ROWS)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys, or KnowEdit's")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way, of any rows")
    parser.add_argument("--num-edits", type=int, default=200)
    parser.add_argument("--batch", action="store_true", help="make all edits at once")
    parser.add_argument("--sample", type=int, default=None, help="measure on so many edits, drawn at random")
    parser.add_argument("--conversations", type=int, default=10, help="edits whose dialogues are measured")
    args = parser.parse_args()
    log_progress()

    edits = read_edits(args.data)[: args.num_edits]
    data, mode = Path(args.data).stem, "batch" if args.batch else "lifelong"
    size = len(edits) if args.batch else -(-len(edits) // STEPS)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    editor, made = make(
        ROWS[args.row], base, tokenizer, edits, size, args.work / f"{args.row}_{data}_{mode}_{len(edits)}"
    )
    sample = drawn(edits, args.sample or len(edits), seed=0)
    talked = drawn(edits, args.conversations, seed=1)
    scores = args.work / "scores"
    measures = measured(editor, tokenizer, without_edited_neighbours(sample, edits), talked, scores)
    for name, grouped in by_group(args.data, sample).items():
        measures |= of_group(editor, tokenizer, name, grouped, scores)
    kb = made["bytes"] / 1024
    costs = {"cpu_seconds_per_edit": made["seconds"] / len(edits), "kb": kb}
    costs["kb_per_edit"] = (made["bytes"] - made["bytes_before"]) / 1024 / len(edits)
    report = {
        "command": command(),
        "protocol": EditEvaluator.protocol,
        "row": args.row,
        "mode": mode,
        "num_edits": len(edits),
        "edits_per_step": size,
        "measured_on": {"edits": len(sample), "conversations": len(talked)},
        "measures": {"num_edits": len(edits)} | measures | costs,
        "versions": versions(),
    }
    print(json.dumps(report["measures"], indent=1))
    write(report, RESULTS / f"table_{data}_{mode}_{args.row}.json")


def make(row: Row, base, tokenizer, edits: list[Edit], size: int, run: Path) -> tuple[Editor, dict]:
    """Make the edits that are left, and tell seconds and bytes of all."""
    run.mkdir(parents=True, exist_ok=True)
    log = run / "made.json"
    if log.exists():
        made = json.loads(log.read_text())
        editor = row(base, tokenizer, size, run / str(made["num"]))
    else:
        editor = row(base, tokenizer, size, None)
        editor.save_pretrained(run / "0")
        made = {"num": 0, "seconds": 0.0, "bytes_before": bytes_in(run / "0")}
        made["bytes"] = made["bytes_before"]
    for first in range(made["num"], len(edits), size):
        began = time.process_time()
        editor.edit(edits[first : first + size])
        made["seconds"] += time.process_time() - began
        made["num"] = min(first + size, len(edits))
        saved = run / str(made["num"])
        editor.save_pretrained(saved)
        made["bytes"] = bytes_in(saved)
        log.write_text(json.dumps(made))
        print(f"{made['num']} edits, {made['seconds'] / made['num']:.3f} s an edit", flush=True)
    return editor, made


def bytes_in(folder: Path) -> int:
    """Of what a saved row needs; a ledger for people to read (`.jsonl`) is left out."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in {".safetensors", ".pt", ".json"})


def measured(editor: Editor, tokenizer, sample: list[Edit], talked: list[Edit], work: Path) -> dict[str, float]:
    if isinstance(editor, Retrieval):
        return without_counts(editor.measures(sample, work))
    model = editor.model.eval()
    measures = EditEvaluator(sample, AT_ONCE, work=work)(model, tokenizer)
    if talked:
        measures |= EditEvaluator(talked, AT_ONCE, measures=["conversation"], work=work)(model, tokenizer)
    return without_counts(measures)


def by_group(path: str, sample: list[Edit]) -> dict[tuple[str, str], list[Edit]]:
    """Of records whose probes are grouped: by kind and name, the edits of a sample with the probes of that group alone."""
    groups: dict[tuple[str, str], list[Edit]] = {}
    prompts = {edit.prompt for edit in sample}
    for record, _ in records(Path(path)):
        for kind in GROUPED:
            for name, group in (record.get(kind) or {}).items():
                alone = {key: value for key, value in record.items() if key not in GROUPED} | {kind: {name: group}}
                (edit,) = read_edits([alone], "knowedit")
                if edit.prompt in prompts and edit.probes(kind):
                    groups.setdefault((kind, name), []).append(edit)
    return groups


def of_group(editor: Editor, tokenizer, name: tuple[str, str], edits: list[Edit], work: Path) -> dict[str, float]:
    """The measures of a group of probes, named after it: `locality_Forgetfulness`."""
    if isinstance(editor, Retrieval):
        return {}
    measures = EditEvaluator(edits, AT_ONCE, measures=[name[0]], work=work)(editor.model.eval(), tokenizer)
    return {f"{key}_{name[1]}": value for key, value in without_counts(measures).items()}


if __name__ == "__main__":
    main()
