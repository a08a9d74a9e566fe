"""Routing alone, against the number of edits: how long the search takes and how often it is right.

    python benchmarks/routing.py --model FOLDER --data counterfact_3000.jsonl --unrelated unrelated_questions.txt

Needs a tokenizer and no model, so that names alone count: whatever is asked about a subject asks for its edits. Real edits
come first; beyond them, subjects mix the words of two real ones, which makes them collide more than real ones would.
`search_shared_ms` is for a prompt about a subject that ten edits share.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from report import RESULTS, command, write
from speed_serve import generated_edits
from transformers import AutoTokenizer

from lemoe_hf import Edit
from lemoe_hf.editing.relations import learn_vocabulary
from lemoe_hf.editing.tokens import Calibration, tokenize_edit
from lemoe_hf.routing.anchors import Anchors
from lemoe_hf.routing.router import Asking, Router
from lemoe_hf.routing.targets import Targets
from lemoe_hf.routing.text import Text
from lemoe_hf.routing.vocabulary import Vocabulary


def routed(router: Router, tokens: list[int]) -> int | None:
    """The edit that acts behind a prompt, as `generate` has it routed, or `None` where the base model answers."""
    text = Text(ends={len(tokens) - 1}, prompt=len(tokens))
    text.read(tokens, range(len(tokens)), router.vocabulary)
    asking = Asking(text, 0)
    router.questions([asking])
    text.act(0, asking.questions, router.targets.of)
    return None if text.acting is None else text.acting.edit


def answered_by(router: Router, tokenizer, texts: list[str]) -> list[int | None]:
    return [routed(router, tokenizer(text.rstrip())["input_ids"]) for text in texts]


def search_ms(router: Router, tokenizer, texts: list[str]) -> float:
    """Median time to route a prompt of 64 tokens that ends with one of some texts."""
    times = []
    for text in texts:
        tokens = tokenizer("It was a quiet morning. " * 12 + text.rstrip())["input_ids"][-64:]
        began = time.perf_counter()
        routed(router, tokens)
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
    calibration, vocabulary, rows, done = Calibration(tokenizer), Vocabulary(), [], 0
    learn_vocabulary(vocabulary, tokenizer)
    anchors = Anchors()
    router = Router(anchors, Targets(), vocabulary)
    for num in sorted(args.num_edits):
        began, new = time.perf_counter(), []
        for i in range(done, num):
            new += calibration.anchors(tokenize_edit(tokenizer, edits[i], 2**31), i, i)
        anchors.add(new)
        seconds, done = (time.perf_counter() - began) / len(new), num
        sample = edits[: num : -(-num // 500)]
        index = list(range(0, num, -(-num // 500)))
        subjects = [edit.subject for edit in edits[:num]]
        own = answered_by(router, tokenizer, [edit.prompt for edit in sample])
        asked = [(i, prompt) for i in index for prompt, _ in edits[i].probes("rephrase")]
        rephrased = answered_by(router, tokenizer, [prompt for _, prompt in asked])
        unrelated = answered_by(router, tokenizer, questions)
        names = {words(edit.subject) for edit in edits[:num]}
        mentions = [any(name in words(question) for name in names) for question in questions]
        rows.append(
            {
                "edits": num,
                "anchors": len(anchors),
                "search_ms": search_ms(router, tokenizer, [edit.prompt for edit in sample[:200]]),
                "search_shared_ms": search_ms(router, tokenizer, [f"What about {edits[0].subject}?"] * 200),
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
