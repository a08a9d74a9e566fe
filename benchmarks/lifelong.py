"""A long run of edits, measured on the final model: one command, one row of the README's table.

    python benchmarks/lifelong.py --model FOLDER --data zsre_1000.jsonl --step 100 --work FOLDER
    python benchmarks/lifelong.py --model FOLDER --data zsre_1000.jsonl --first-of-subject --work FOLDER

Everything that is done is written to `--work` as it comes, and the same command goes on where it was interrupted. Beside
the measures of `EditEvaluator` these are taken:

- `same_subject_kept`: questions about edited subjects that no edit is about; share of the first ten greedy tokens that
  are the base model's. `same_subject_exact`: share of the questions of which all are.
- `free_reliability_chat`, `_prefix`, `_document`: answers to prompts in the chat template, behind fifty unrelated tokens,
  and at the end of a document of five hundred.
- `retention`: reliability of the first hundred edits at the end, less what it was right after they were made.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import peft
import torch
import transformers
from peft import PeftModel, get_peft_model
from same_subject import other_questions
from transformers import AutoModelForCausalLM, AutoTokenizer

import lemoe_hf
from lemoe_hf import Edit, EditEvaluator, LEMoEConfig, LifelongEditor, read_edits
from lemoe_hf.data import reference_prompts
from lemoe_hf.evaluation.metrics import starts_with
from lemoe_hf.generation import answers


AT_ONCE, SAVE_EVERY, KEPT_TOKENS = 32, 100, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument(
        "--data", required=True, nargs="+", help="JSON lines with EasyEdit's keys, one after the other"
    )
    parser.add_argument("--work", required=True, type=Path, help="folder for what is under way")
    parser.add_argument("--num-edits", type=int, default=None, help="by default all")
    parser.add_argument("--step", type=int, default=100, help="edits a call of `edit`")
    parser.add_argument("--sample", type=int, default=None, help="measure on so many of the edits, drawn at random")
    parser.add_argument(
        "--extras", type=int, default=100, help="edits whose contexts and other questions are measured"
    )
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

    edits = list(chain.from_iterable(read_edits(path) for path in args.data))
    lenders = [*edits, *chain.from_iterable(read_edits(path) for path in args.templates)]
    if args.first_of_subject:
        edits = list({edit.subject or edit.prompt: edit for edit in reversed(edits)}.values())[::-1]
    edits = edits[: args.num_edits]
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    editor, made = make(args, tokenizer, [replace(edit, subject=None) if args.no_subject else edit for edit in edits])
    model = editor.model.eval()

    drawn = random.Random(0).sample(range(len(edits)), min(args.sample or len(edits), len(edits)))
    evaluate = EditEvaluator(edits, batch_size=AT_ONCE)
    scores = resumed(
        args.work / "scores.jsonl",
        sorted(drawn),
        lambda rows: evaluate.scores(model, tokenizer, [edits[i] for i in rows]),
    )
    unedited = []
    if args.unedited:
        with model.disable_adapter():
            unedited = resumed(
                args.work / "unedited.jsonl",
                sorted(drawn),
                lambda rows: evaluate.scores(model, tokenizer, [edits[i] for i in rows]),
            )
    extras = sorted(random.Random(1).sample(range(len(edits)), min(args.extras, len(edits))))
    scores += resumed(args.work / "contexts.jsonl", extras, lambda rows: in_contexts(editor, [edits[i] for i in rows]))
    questions = other_questions(edits, lenders)
    asked = sorted(random.Random(2).sample(range(len(questions)), min(2 * args.extras, len(questions))))
    scores += resumed(
        args.work / "same_subject.jsonl", asked, lambda rows: kept(editor, [questions[i][1] for i in rows])
    )
    measures = means(scores)
    first = [
        score["reliability"] for i, score in zip(sorted(drawn), scores, strict=False) if str(i) in made["reliability"]
    ]
    before = [made["reliability"][str(i)] for i in sorted(drawn) if str(i) in made["reliability"]]
    if first:
        measures["retention"] = statistics.mean(first) - statistics.mean(before)

    name = args.name or "_".join(Path(path).stem for path in args.data) + f"_step_{args.step}"
    report = {
        "command": f"python benchmarks/lifelong.py --model {Path(args.model).name} --data "
        f"{' '.join(Path(path).name for path in args.data)} --step {args.step} --work DIR"
        + (f" --num-edits {args.num_edits}" if args.num_edits else "")
        + (f" --sample {args.sample}" if args.sample else "")
        + f" --extras {args.extras}"
        + " --first-of-subject" * args.first_of_subject
        + " --no-subject" * args.no_subject
        + " --unedited" * args.unedited
        + " --paper" * args.paper
        + (f" --templates {' '.join(Path(path).name for path in args.templates)}" if args.templates else "")
        + (f" --config '{json.dumps(args.config)}'" if args.config else ""),
        "num_edits": len(edits),
        "measured_on": {"edits": len(drawn), "contexts": len(extras), "same_subject": len(asked)},
        "measures": measures,
        "unedited": means(unedited),
        "cpu_seconds_per_edit": statistics.mean(made["seconds"]),
        "steps_per_edit": statistics.mean(made["steps"]),
        "versions": {
            "lemoe_hf": lemoe_hf.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "python": platform.python_version(),
        },
    }
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(measures, indent=1), path)


def means(scores: list[dict]) -> dict[str, float]:
    names = dict.fromkeys(name for score in scores for name in score)
    return {name: statistics.mean(score[name] for score in scores if name in score) for name in names}


def make(args: argparse.Namespace, tokenizer, edits: list[Edit]) -> tuple[LifelongEditor, dict]:
    """Make the edits, or those that are left; with them what each cost, and the reliability of the first hundred then."""
    base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    adapter, log = args.work / "adapter", args.work / "made.json"
    if log.exists():
        model = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
        made = json.loads(log.read_text())
    else:
        config = LEMoEConfig.paper(**args.config) if args.paper else LEMoEConfig(**args.config)
        model, made = get_peft_model(base, config), {"num": 0, "seconds": [], "steps": [], "reliability": {}}
    editor = LifelongEditor(model, tokenizer)
    for first in range(made["num"], len(edits), args.step):
        result = editor.edit(edits[first : first + args.step])
        made["num"] = first + len(result)
        made["seconds"] += [result.seconds / len(result)] * len(result)
        made["steps"] += [record["steps"] for record in result.records]
        if first < 100:
            new = edits[first : made["num"]]
            found = EditEvaluator(new).teacher_forced(
                model, tokenizer, [edit.prompt for edit in new], [edit.target_new for edit in new]
            )
            made["reliability"] |= {str(first + i): share for i, share in enumerate(found)}
        print(f"{made['num']} edits, {result.seconds / len(result):.3f} s an edit", flush=True)
        if made["num"] % SAVE_EVERY == 0 or made["num"] == len(edits):
            editor.save_pretrained(adapter)
            log.write_text(json.dumps(made))
    return editor, made


def resumed(path: Path, rows: Sequence[int], measure: Callable[[Sequence[int]], list[dict]]) -> list[dict]:
    """What is measured of every row, some at a time, kept in a file of JSON lines."""
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for first in range(len(done), len(rows), 2 * AT_ONCE):
        new = measure(rows[first : first + 2 * AT_ONCE])
        with path.open("a") as file:
            file.writelines(json.dumps(score) + "\n" for score in new)
        done += new
        print(f"{path.stem}: {len(done)} of {len(rows)}", flush=True)
    return done


def in_contexts(editor: LifelongEditor, edits: Sequence[Edit]) -> list[dict]:
    tokenizer, model = editor.tokenizer, editor.model
    draw = random.Random(0)

    def unrelated(num_tokens: int) -> str:
        text = ""
        while len(tokenizer(text)["input_ids"]) < num_tokens:
            text += draw.choice(reference_prompts()) + " "
        return text

    prompts = {
        "chat": [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": edit.prompt}], tokenize=False, add_generation_prompt=True
            )
            for edit in edits
        ],
        "prefix": [unrelated(50) + edit.prompt for edit in edits],
        "document": [unrelated(500) + edit.prompt for edit in edits],
    }
    bounds = [len(tokenizer(edit.target_new)["input_ids"]) + 3 for edit in edits]
    found: list[dict] = [{} for _ in edits]
    for name, texts in prompts.items():
        given = answers(model, tokenizer, texts, bounds, batch_size=8)
        for score, answer, edit in zip(found, given, edits, strict=True):
            score[f"free_reliability_{name}"] = starts_with(answer, edit.target_new)
    return found


def kept(editor: LifelongEditor, questions: Sequence[str]) -> list[dict]:
    """How much of what the base model says to questions is left."""
    tokenizer, model = editor.tokenizer, editor.model
    after = answers(model, tokenizer, questions, KEPT_TOKENS, AT_ONCE)
    with model.disable_adapter():
        before = answers(model, tokenizer, questions, KEPT_TOKENS, AT_ONCE)
    found = []
    for texts in zip(before, after, strict=True):
        old, new = (tokenizer(text)["input_ids"][:KEPT_TOKENS] for text in texts)
        same = sum(a == b for a, b in zip(old, new, strict=False))
        share = same / max(len(old), 1) if old else float(not new)
        found.append({"same_subject_kept": share, "same_subject_exact": float(texts[0] == texts[1])})
    return found


if __name__ == "__main__":
    main()
