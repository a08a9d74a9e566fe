"""A long run of edits, measured on the final model: one command, one row of the README's table.

    python benchmarks/lifelong.py --model FOLDER --data zsre_1000.jsonl --step 100 --work FOLDER
    python benchmarks/lifelong.py --model FOLDER --data zsre_1000.jsonl --first-of-subject --work FOLDER

Everything that is done is written to `--work` as it comes, and the same command goes on where it was interrupted. The measures
are those of `EditEvaluator`, its contexts on some of the edits, and of `SameSubject`, and `retention`: reliability of the
first hundred edits at the end, less what it was right after they were made. Locality prompts that are about the subject of an
edit are left out. Of several files each is measured by itself as well, on edits that are drawn as from the file alone. What is
timed is in other benchmarks.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
from dataclasses import fields, replace
from itertools import chain
from pathlib import Path
from typing import get_args

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from report import RESULTS, command, log_progress, write
from same_subject import first_of_subject, other_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

from lemoe_hf import Edit, EditEvaluator, LEMoEConfig, LifelongEditor, plan_order, read_edits
from lemoe_hf.editing.ordering import OrderBy
from lemoe_hf.evaluation import SameSubject, teacher_forced, versions
from lemoe_hf.evaluation.metrics import retention


AT_ONCE, SAVE_EVERY, FIRST = 32, 100, 100
ALL = ["reliability", "generality", "locality", "portability", "routing"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument(
        "--data", required=True, nargs="+", help="JSON lines with EasyEdit's keys, one after the other"
    )
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--num-edits", type=int, default=None, help="by default all")
    parser.add_argument("--step", type=int, default=100, help="edits a call of `edit`")
    parser.add_argument(
        "--sample", type=int, default=None, help="measure on so many edits of each file, drawn at random"
    )
    parser.add_argument("--extras", type=int, default=100, help="edits that are measured in other contexts")
    parser.add_argument("--questions", type=int, default=200, help="other questions about edited subjects")
    parser.add_argument("--order", default="none", choices=get_args(OrderBy), help="which edits to make together")
    parser.add_argument("--first-of-subject", action="store_true", help="only the first edit of every subject")
    parser.add_argument("--no-subject", action="store_true", help="edits do not tell their subject")
    parser.add_argument("--unedited", action="store_true", help="measure the base model as well")
    parser.add_argument(
        "--templates", nargs="*", default=[], help="further data whose wordings ask the other questions"
    )
    parser.add_argument("--config", type=json.loads, default={}, help="of LEMoEConfig, as JSON")
    parser.add_argument("--paper", action="store_true", help="the published setting")
    parser.add_argument("--name", default=None, help="of the result, by default that of the data")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    log_progress()

    files = {Path(path).stem: read_edits(path) for path in args.data}
    edits = list(chain(*files.values()))
    lenders = [*edits, *chain.from_iterable(read_edits(path) for path in args.templates)]
    if args.first_of_subject:
        edits = first_of_subject(edits)
    edits = edits[: args.num_edits]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    editor, made = started(args, tokenizer)
    ordered = list(chain(*plan_order(edits, editor.model, tokenizer, args.order, args.step).batches))
    make(args, editor, made, [replace(edit, subject=None) if args.no_subject else edit for edit in ordered])
    model = editor.model.eval()

    is_made, num = set(edits), args.sample or len(edits)
    of_files = {name: drawn([edit for edit in rows if edit in is_made], num, seed=0) for name, rows in files.items()}
    of_files = {name: without_edited_neighbours(rows, edits) for name, rows in of_files.items()}
    sample = list(chain(*of_files.values()))
    extras = drawn(edits, args.extras, seed=1)
    questions = drawn([question for _, question in other_questions(edits, lenders)], args.questions, seed=2)
    of_all = EditEvaluator(sample, AT_ONCE, measures=ALL, work=args.work)(model, tokenizer)
    asked = {"": questions, "_questions": [each for each in questions if each.endswith("?")]}
    asked["_statements"] = [each for each in questions if not each.endswith("?")]
    kept = {
        f"{key}{kind}": value
        for kind, rows in asked.items()
        for key, value in SameSubject(rows, AT_ONCE, work=args.work)(model, tokenizer).items()
    }
    in_contexts = EditEvaluator(extras, AT_ONCE, measures=["contexts"], work=args.work)(model, tokenizer)
    first = ordered[:FIRST]
    now = EditEvaluator(first, AT_ONCE, measures=["reliability"], work=args.work).scores(model, tokenizer, first)
    before = [made["reliability"][str(i)] for i in range(len(first))]
    measures = of_all | in_contexts | kept | {"retention": retention(before, [each["reliability"] for each in now])}
    rows = []
    if len(files) > 1:
        for name, part in of_files.items():
            of_file = EditEvaluator(part, AT_ONCE, measures=ALL, work=args.work)(model, tokenizer)
            rows.append({"name": name, "num_edits": len(part), "measures": without_counts(of_file)})
    unedited = {}
    if args.unedited:
        with model.disable_adapter():
            unedited = EditEvaluator(sample, AT_ONCE, work=args.work)(model, tokenizer)

    report = {
        "command": command(),
        "protocol": EditEvaluator.protocol,
        "num_edits": len(edits),
        "measured_on": measured_on(sample, extras, questions, first),
        "measures": without_counts(measures),
        "rows": rows,
        "unedited": without_counts(unedited),
        "steps_per_edit": statistics.mean(made["steps"]),
        "config": settings_of(editor.config),
        "arguments": vars(editor.arguments),
        "versions": versions(),
    }
    print(json.dumps(report["measures"], indent=1))
    name = args.name or "_".join(Path(path).stem for path in args.data) + f"_step_{args.step}"
    write(report, RESULTS / f"{name}.json")


def measured_on(sample: list[Edit], extras: list[Edit], questions: list[str], first: list[Edit]) -> dict[str, int]:
    numbers = {"edits": len(sample), "locality": sum(edit.locality_prompt is not None for edit in sample)}
    return numbers | {"contexts": len(extras), "same_subject": len(questions), "retention": len(first)}


def without_counts(measures: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in measures.items() if not name.startswith("num_")}


def settings_of(config: LEMoEConfig) -> dict:
    """The settings of the method: not what every PEFT config has, nor what follows from the edits."""
    own = {field.name for field in fields(LEMoEConfig)} - {field.name for field in fields(PeftConfig)}
    said = {name: value for name, value in config.to_dict().items() if name in own and not name.startswith("num_")}
    return {name: sorted(value) if isinstance(value, set) else value for name, value in said.items()}


def without_edited_neighbours(sample: list[Edit], edits: list[Edit]) -> list[Edit]:
    """Edits without the locality prompts that are about the subject of another edit: those are not to stay as they were."""
    subjects = names_of(edits)

    def is_edited(prompt: str) -> bool:
        """Whether a prompt names such a subject, and not as a part of a longer name: David is not David Beckham."""
        name = Edit(prompt, "-").subject_span() or (0, 0)
        found = [match.span() for match in subjects.finditer(prompt)]
        return any(not (name[0] <= start and end <= name[1] and name != (start, end)) for start, end in found)

    return [
        replace(edit, locality_prompt=None, locality_ground_truth=None)
        if any(is_edited(prompt) for prompt, _ in edit.probes("locality"))
        else edit
        for edit in sample
    ]


def names_of(edits: list[Edit]) -> re.Pattern[str]:
    """The subject of any edit, as a word by itself; of two that begin alike the longer one."""
    names = sorted({edit.subject for edit in edits if edit.subject}, key=len, reverse=True)
    return re.compile("|".join(rf"\b{re.escape(name)}(?!\w)" for name in names) or "$^", re.I)


def drawn(rows: list, num: int, seed: int) -> list:
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), min(num, len(rows))))]


def first_hundred(model, tokenizer, edits: list[Edit]) -> float:
    """Reliability of the first hundred edits."""
    prompts, targets = [edit.prompt for edit in edits[:FIRST]], [edit.target_new for edit in edits[:FIRST]]
    return statistics.mean(teacher_forced(model, tokenizer, prompts, targets))


def started(args: argparse.Namespace, tokenizer) -> tuple[LifelongEditor, dict]:
    """An editor with the edits that were made before, if any, and what was noted of them."""
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    log = args.work / "made.json"
    if log.exists():
        model = PeftModel.from_pretrained(base, str(args.work / "adapter"), is_trainable=True)
        made = json.loads(log.read_text())
    else:
        config = LEMoEConfig.paper(**args.config) if args.paper else LEMoEConfig(**args.config)
        model, made = get_peft_model(base, config), {"num": 0, "steps": [], "reliability": {}}
    return LifelongEditor(model, tokenizer), made


def finished(model: str, adapter: str) -> tuple[LifelongEditor, list[Edit]]:
    """An editor with an adapter that was left in `--work`, and the edits in it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model)
    editor = LifelongEditor(PeftModel.from_pretrained(base, adapter).eval(), tokenizer)
    return editor, [Edit(**entry["edit"]) for entry in editor.edits()]


def make(args: argparse.Namespace, editor: LifelongEditor, made: dict, edits: list[Edit]) -> None:
    """Make the edits that are left."""
    for first in range(made["num"], len(edits), args.step):
        result = editor.edit(edits[first : first + args.step])
        made["num"] = first + len(result)
        made["steps"] += [record["steps"] for record in result.records]
        if first < FIRST:
            new = edits[first : made["num"]]
            prompts, targets = [edit.prompt for edit in new], [edit.target_new for edit in new]
            found = teacher_forced(editor.model, editor.tokenizer, prompts, targets)
            made["reliability"] |= {str(first + i): share for i, share in enumerate(found)}
        print(f"{made['num']} edits, {result.seconds / len(result):.3f} s an edit", flush=True)
        if made["num"] % SAVE_EVERY == 0 or made["num"] == len(edits):
            editor.save_pretrained(args.work / "adapter")
            (args.work / "made.json").write_text(json.dumps(made))


if __name__ == "__main__":
    main()
