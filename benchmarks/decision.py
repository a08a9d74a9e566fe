"""Which questions about an edited subject an edit answers, and which it leaves alone, after all edits of a file.

    python benchmarks/decision.py --model FOLDER --data halluedit.jsonl --records 300 --work FOLDER

A line of the data is a record with EasyEdit's keys, `prompt`, `target_new` and `subject`, and what is asked about it: a
`rephrase_prompt` (of EasyEdit), a `same_subject_question` and a `yes_question` (HalluEditBench), `locality` by kinds
(KnowEdit), or `probes` of our own (`kind`, `expect`, and a `prompt` or `messages`).

| of | figure | what |
|---|---|---|
| what is to be answered | `acts` | an edit acts: the logits are not the base model's |
| | `free` | the greedy answer begins with the target |
| what is to be left alone | `bits` | the logits are the base model's, bit for bit |
| | `tokens` | tokens of the known answer that are predicted as by the base model; of the next ten, where none is known |

With `--max-steps 1` experts learn next to nothing, but `acts` and `bits` tell what is decided all the same: nothing is
generated. What is done is kept in `--work`, and the same command goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from report import RESULTS, command, write
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from lemoe_hf import Edit, EditingArguments, LEMoEConfig, LifelongEditor
from lemoe_hf.editing.tokens import continuation
from lemoe_hf.evaluation import versions
from lemoe_hf.evaluation.forced import ForcedBatch
from lemoe_hf.evaluation.metrics import agreement
from lemoe_hf.generation import continuations, pad_right


AT_ONCE, NEXT = 16, 10


@dataclass(frozen=True)
class Probe:
    """What is asked, as tokens; its kind; the target, or `None` where the base model is to answer; an answer that is known."""

    kind: str
    ids: list[int]
    target: str | None
    known: str | None = None


def edit_of(record: dict) -> Edit:
    subject = record.get("subject")
    return Edit(record["prompt"], record["target_new"], subject=subject if subject in record["prompt"] else None)


def probes_of(record: dict, tokenizer: PreTrainedTokenizerBase) -> Iterator[Probe]:
    def of(kind: str, prompt: str, target: str | None, known: str | None = None) -> Probe:
        return Probe(kind, tokenizer(prompt)["input_ids"], target, known)

    target = record.get("target_new")
    if target is not None:
        yield of("own prompt", record["prompt"], target)
    if record.get("rephrase_prompt"):
        yield of("rephrased", record["rephrase_prompt"], target)
    for kind in ("same_subject_question", "yes_question"):
        if record.get(kind):
            yield of(kind, record[kind], None)
    for kind, entries in record.get("locality", {}).items():
        for prompt, known in zip(entries["prompt"], entries["ground_truth"], strict=True):
            known = known[0] if isinstance(known, list) else known
            yield of(kind, prompt, None, known or None)
    for probe in record.get("probes", [] if target is not None else [record]):
        if probe["expect"] not in ("target", "base"):
            continue
        form = "question" if record.get("prompt", "").rstrip().endswith("?") else "statement"
        kind = f"{probe['kind']}, edit is a {form}" if "other relation" in probe["kind"] else probe["kind"]
        if probe.get("messages"):
            rendered = tokenizer.apply_chat_template(probe["messages"], add_generation_prompt=True, tokenize=False)
            ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        else:
            ids = tokenizer(probe["prompt"])["input_ids"]
        yield Probe(kind, ids, target if probe["expect"] == "target" else None)


@torch.no_grad()
def measured(editor: LifelongEditor, probes: list[Probe], answers: bool) -> list[dict]:
    """Figures of each probe; of its answer, too, if `answers`."""
    model, tokenizer = editor.model, editor.tokenizer
    behind = [continuation(tokenizer, tokenizer.decode(each.ids), each.known or "the") for each in probes]
    texts = [each.ids + known for each, known in zip(probes, behind, strict=True)]
    ids, mask = pad_right(texts, tokenizer.pad_token_id, torch.device("cpu"))
    batch = ForcedBatch(ids, mask, [len(each.ids) - 1 for each in probes], behind)
    edited = batch.logits(model)
    with model.disable_adapter():
        base = batch.logits(model)
    figures = []
    for probe, column, before, after in zip(probes, batch.columns, base, edited, strict=True):
        figure = {"kind": probe.kind, "bits": torch.equal(before, after)}
        figure["tokens"] = (before[column:].argmax(-1) == after[column:].argmax(-1)).float().mean().item()
        figures.append(figure)
    asked = [i for i, probe in enumerate(probes) if probe.target is not None]
    said = generated(editor, [probes[i] for i in asked], answers)
    for i, text in zip(asked, said, strict=True):
        figures[i] = {"kind": probes[i].kind, "acts": not figures[i]["bits"]}
        if answers:
            figures[i]["free"] = text.startswith(probes[i].target.strip().lower())
    changed = [i for i, figure in enumerate(figures) if not figure.get("bits", True) and probes[i].known is None]
    new = generated(editor, [probes[i] for i in changed], answers)
    with model.disable_adapter():
        old = generated(editor, [probes[i] for i in changed], answers)
    for i, before, after in zip(changed, old, new, strict=True):
        one, two = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (before, after))
        figures[i]["tokens"] = agreement(one, two, NEXT)
    return figures


def generated(editor: LifelongEditor, probes: list[Probe], answers: bool) -> list[str]:
    """What is said, in lower case; nothing unless answers are asked for."""
    if not answers:
        return [""] * len(probes)
    lengths = [NEXT if each.target is None else len(editor.tokenizer(each.target)["input_ids"]) + 4 for each in probes]
    said = continuations(editor.model, editor.tokenizer, [each.ids for each in probes], lengths, AT_ONCE)
    return [editor.tokenizer.decode(ids, skip_special_tokens=True).strip().lower() for ids in said]


def summed_up(figures: list[dict]) -> dict:
    kinds: dict[str, list[dict]] = defaultdict(list)
    for figure in figures:
        kinds[figure["kind"]].append(figure)
    return {
        kind: {"num": len(of_kind)}
        | {name: sum(each[name] for each in of_kind) / len(of_kind) for name in of_kind[0] if name != "kind"}
        for kind, of_kind in sorted(kinds.items())
    }


def editor_of(args: argparse.Namespace) -> LifelongEditor:
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    if (args.work / "adapter").exists():
        model = PeftModel.from_pretrained(base, args.work / "adapter", is_trainable=True)
    else:
        model = get_peft_model(base, LEMoEConfig())
    few = {} if args.max_steps is None else {"max_steps": args.max_steps, "contexts": ()}
    return LifelongEditor(model.eval(), tokenizer, EditingArguments(**few))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--data", required=True, type=Path, help="JSON lines")
    parser.add_argument("--records", type=int, help="only that many, the first")
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--step", type=int, default=20, help="edits between two savings; each is made by itself")
    parser.add_argument("--max-steps", type=int, help="of training an edit, on its own prompt alone")
    parser.add_argument("--name", help="of the result; by default that of the data")
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    records = [json.loads(line) for line in args.data.read_text(encoding="utf-8").splitlines()][: args.records]
    edits = [edit_of(record) for record in records if "target_new" in record]
    editor = editor_of(args)
    for first in range(len(editor.edits()), len(edits), args.step):
        for edit in edits[first : first + args.step]:
            editor.edit(edit)
        editor.save_pretrained(args.work / "adapter")
        print(f"{min(first + args.step, len(edits))} of {len(edits)} edits", flush=True)

    probes = [probe for record in records for probe in probes_of(record, editor.tokenizer)]
    probes.sort(key=lambda probe: len(probe.ids))
    journal = args.work / "figures.jsonl"
    figures = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    with journal.open("a") as file:
        for first in range(len(figures), len(probes), AT_ONCE):
            new = measured(editor, probes[first : first + AT_ONCE], answers=args.max_steps is None)
            file.writelines(json.dumps(figure) + "\n" for figure in new)
            file.flush()
            figures += new
    thresholds = editor.tuner.layers_of()[0].relations("default").thresholds.tolist()
    outcome = summed_up(figures)
    for kind, figure in outcome.items():
        print(kind, figure)
    report = {"command": command(), "num_edits": len(edits), "thresholds": thresholds, "kinds": outcome}
    write(report | {"versions": versions()}, RESULTS / f"decision_{args.name or args.data.stem}.json")


if __name__ == "__main__":
    main()
