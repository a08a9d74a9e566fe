"""Texts that were written for this package, to calibrate on, and others to measure with.

`reference_prompts.txt` holds everyday prompts that no edit is about, and `unrelated_sentences.txt` sentences for prompts to
stand behind: nothing is calibrated on these. `relations.jsonl` holds relations, each asked for in a dozen
ways, and `subjects.jsonl` invented names of every kind of subject that they are asked of. `dialogues.jsonl` holds what is said
around an edit's question in the conversations that are measured: nothing is learned from it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple


# Every relation is asked for by its name as well.
PLAIN = (
    "Can you tell me the name of the {relation} of {{}}?",
    "The {relation}, in the case of {{}}, is",
    "As for {{}}, the name of the {relation} is",
)


class RelationPrompt(NamedTuple):
    """Index of the relation that a prompt asks for, index of its subject's kind, the subject, and the text."""

    relation: int
    kind: int
    subject: str
    text: str


@cache
def reference_prompts() -> tuple[str, ...]:
    """About two hundred everyday prompts, one a line of `reference_prompts.txt`."""
    return tuple(_lines("reference_prompts.txt"))


@cache
def unrelated_sentences() -> tuple[str, ...]:
    """Some sixty sentences of everyday prose, one a line of `unrelated_sentences.txt`."""
    return tuple(_lines("unrelated_sentences.txt"))


@cache
def reference_relations() -> tuple[RelationPrompt, ...]:
    """About nine thousand prompts."""
    names = {entry["kind"]: entry["names"] for entry in map(json.loads, _lines("subjects.jsonl"))}
    kinds, prompts = sorted(names), []
    for relation, entry in enumerate(map(json.loads, _lines("relations.jsonl"))):
        of_kind = names[entry["kind"]]
        plain = [form.format(relation=entry["relation"]) for form in PLAIN]
        for i, prompt in enumerate(dict.fromkeys([*entry["prompts"], *plain])):
            subject = of_kind[(7 * relation + i) % len(of_kind)]
            text = prompt.replace("{}", subject)
            prompts.append(RelationPrompt(relation, kinds.index(entry["kind"]), subject, text))
    return tuple(prompts)


@cache
def dialogue_wordings(part: str) -> tuple[dict[str, str], ...]:
    """The lines of `dialogues.jsonl` for one part of a dialogue, such as `"topic"`: general questions, answered."""
    return tuple(entry for entry in map(json.loads, _lines("dialogues.jsonl")) if entry["part"] == part)


def _lines(name: str) -> list[str]:
    lines = files("lemoe_hf.data").joinpath(name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip()]
