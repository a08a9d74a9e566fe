"""Routing alone, against the number of edits: how long the search takes and how often it is right.

    python benchmarks/routing.py --model FOLDER --data counterfact_3000.jsonl --unrelated unrelated_questions.txt

Needs a tokenizer and no model. Real edits come first; beyond them, subjects mix the words of two real ones, which makes
them collide more than real ones would. `search_shared_ms` is for a prompt about a subject that ten edits share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from report import RESULTS, command, write
from speed_serve import generated_edits
from transformers import AutoTokenizer

from lemoe_hf import Edit
from lemoe_hf.editing.tokens import Calibration, tokenize_edit
from lemoe_hf.routing.anchors import Anchors
from lemoe_hf.routing.scope import in_scope


def answered_by(anchors: Anchors, tokenizer, texts: list[str]) -> list[int | None]:
    """The edit that takes effect last in each text, or `None` where the base model answers."""
    found = []
    for text in texts:
        matches = in_scope(anchors, torch.tensor([tokenizer(text)["input_ids"]]))[0]
        found.append(matches[-1].edit if matches else None)
    return found


def search_ms(anchors: Anchors, tokenizer, texts: list[str]) -> float:
    """Median time to route a prompt of 64 tokens that ends with one of some texts."""
    times = []
    for text in texts:
        ids = torch.tensor([tokenizer("It was a quiet morning. " * 12 + text)["input_ids"][-64:]])
        began = time.perf_counter()
        in_scope(anchors, ids)
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times)


def words(text: str) -> str:
    return f" {' '.join(''.join(c if c.isalnum() else ' ' for c in text.lower()).split())} "


def share(values: list[bool]) -> float:
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of the tokenizer")
    parser.add_argument("--data", required=True, help="JSON lines with EasyEdit's keys, subjects and rephrasings")
    parser.add_argument("--unrelated", required=True, help="one unrelated question a line")
    parser.add_argument("--num-edits", type=int, nargs="+", default=[100, 1000, 3000, 10_000, 20_000])
    parser.add_argument("--output", default=RESULTS / "routing.json", type=Path)
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    questions = [line.strip() for line in Path(args.unrelated).read_text().splitlines() if line.strip()]
    edits = generated_edits(args.data, max(args.num_edits))
    subject = edits[0].subject
    edits[1:10] = [Edit(e.prompt.replace(e.subject, subject), e.target_new, subject=subject) for e in edits[1:10]]
    calibration, anchors, rows, done = Calibration(tokenizer), Anchors(), [], 0
    for num in sorted(args.num_edits):
        began, new = time.perf_counter(), []
        for i in range(done, num):
            new += calibration.anchors(tokenize_edit(tokenizer, edits[i], 2**31), i, i)
        anchors.add(new)
        seconds, done = (time.perf_counter() - began) / len(new), num
        sample = edits[: num : -(-num // 500)]
        index = list(range(0, num, -(-num // 500)))
        subjects = [edit.subject for edit in edits[:num]]
        own = answered_by(anchors, tokenizer, [edit.prompt for edit in sample])
        asked = [(i, prompt) for i in index for prompt, _ in edits[i].probes("rephrase")]
        rephrased = answered_by(anchors, tokenizer, [prompt for _, prompt in asked])
        unrelated = answered_by(anchors, tokenizer, questions)
        names = {words(edit.subject) for edit in edits[:num]}
        mentions = [any(name in words(question) for name in names) for question in questions]
        rows.append(
            {
                "edits": num,
                "anchors": len(anchors),
                "search_ms": search_ms(anchors, tokenizer, [edit.prompt for edit in sample[:200]]),
                "search_shared_ms": search_ms(anchors, tokenizer, [f"What about {edits[0].subject}?"] * 200),
                "calibration_ms_per_anchor": 1000 * seconds,
                "prompts_right": share(
                    [a is not None and edits[a].prompt == edits[b].prompt for a, b in zip(own, index, strict=True)]
                ),
                "rephrasings_right_subject": share(
                    [a is not None and subjects[a] == subjects[b] for a, (b, _) in zip(rephrased, asked, strict=True)]
                ),
                "questions_that_mention_a_subject": share(mentions),
                "other_questions_deferred": share(
                    [edit is None for edit, mention in zip(unrelated, mentions, strict=True) if not mention]
                ),
            }
        )
        print(rows[-1], flush=True)
    write({"command": command(), "rows": rows}, args.output)


if __name__ == "__main__":
    main()
