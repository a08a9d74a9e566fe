"""Dialogues in which an edit is asked for, and either answers the last turn or has to leave it to the base model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ..data.edit import Edit
from ..data.reference import dialogue_wordings, unrelated_sentences
from .pronoun import is_of_person, with_pronoun


# Who speaks, and what: as chat templates have it. A document has no speaker but the role "document".
Message = tuple[str, str]

# Questions and answers that make a history long.
LONG = range(8, 13)


@dataclass(frozen=True)
class Dialogue:
    """
    A conversation that waits for an answer, or a document that goes on.

    | kind | history | last turn | right is |
    |---|---|---|---|
    | `topic_change` | the edit's question, answered | something else | the base model's answer |
    | `other_relation_pronoun`, `other_relation_name` | the same | something else about the subject | the same |
    | `other_subject` | the same | the same question about another subject | the same |
    | `user_corrects` | the same | doubt, or thanks | the same |
    | `long_history_base` | the same, then 7 to 11 other questions | another one | the same |
    | `system_prompt_base` | a system prompt names the subject | something else | the same |
    | `document` | | prose that asks the edit's question in passing | the same |
    | `pronoun` | the subject is named | the edit's question, with a pronoun | the target |
    | `several_edits` | one or two other edits, answered | the edit's question | the target |
    | `asked_again` | the edit's question, answered, then another | the edit's question | the target |
    | `long_history_target` | 8 to 12 other questions | the edit's question | the target |
    | `system_prompt_target` | a system prompt, which may name the subject | the edit's question | the target |

    Args:
        kind (`str`): What is tried, a part of the measure's name.
        messages (`tuple[Message, ...]`): Roles and texts; the last one is the user's, or the document.
        target (`str`, *optional*): With what the answer must begin; without it, the base model's is right.
    """

    kind: str
    messages: tuple[Message, ...]
    target: str | None = None


def dialogues(edits: Sequence[Edit], among: Sequence[Edit], seed: int = 0) -> list[list[Dialogue]]:
    """
    Of every edit its dialogues, one of each kind that its prompt allows.

    Args:
        edits (`Sequence` of [`Edit`]): What the dialogues are about.
        among (`Sequence` of [`Edit`]): All edits of the model: what one of them is about is no other topic.
        seed (`int`): Other seeds draw other wordings. An edit's are the same, whatever stands beside it in `edits`.
    """
    subjects = {words_in_a_row(subject) for subject in map(subject_of, among) if subject}
    topics = [
        (topic["user"], topic["assistant"])
        for topic in dialogue_wordings("topic")
        if not any(subject in words_in_a_row(f"{topic['user']} {topic['assistant']}") for subject in subjects)
    ]
    return [list(_Author(edit, among, topics, seed).dialogues()) for edit in edits]


def subject_of(edit: Edit) -> str | None:
    span = edit.subject_span()
    return edit.prompt[slice(*span)] if span else None


class _Author:
    """Writes the dialogues of one edit."""

    def __init__(self, edit: Edit, among: Sequence[Edit], topics: list[tuple[str, str]], seed: int):
        self.edit, self.topics = edit, topics
        self.draw = random.Random(f"{seed} {edit.prompt} {edit.target_new}")
        self.subject = subject_of(edit)
        self.about = "person" if is_of_person(edit) else "thing"
        self.others = [other for other in among if subject_of(other) != self.subject]
        # What is asked of this subject anywhere.
        asked = [edit, *(other for other in among if subject_of(other) == self.subject)]
        self.words = {word for each in asked for word in words_in_a_row(each.prompt).split()}
        self.question, self.answer = edit.prompt.strip(), edit.target_new.strip()

    def dialogues(self) -> Iterator[Dialogue]:
        asked = (self.question, self.answer)
        yield chat("topic_change", [asked], self._topics(1)[0][0])
        yield chat("other_relation_pronoun", [asked], self._wording("by_pronoun"))
        yield chat("user_corrects", [asked], self._wording("remark"))
        yield chat("asked_again", [asked, *self._topics(1)], self.question, self.answer)
        yield chat("long_history_target", self._topics(self.draw.choice(LONG)), self.question, self.answer)
        *between, (topic, _) = self._topics(self.draw.choice(LONG))
        yield chat("long_history_base", [asked, *between], topic)
        yield from self._several()
        yield Dialogue("document", (("document", self._document()),))
        system = ["system", "system_about"] if self.subject else ["system"]
        instructions = self._wording(self.draw.choice(system))
        yield chat("system_prompt_target", [], self.question, self.answer, instructions)
        if self.subject:
            yield from self._of_the_subject(asked)

    def _of_the_subject(self, asked: tuple[str, str]) -> Iterator[Dialogue]:
        yield chat("other_relation_name", [asked], self._wording("by_name"))
        yield chat("other_subject", [asked], self._of_another_subject())
        yield chat("system_prompt_base", [], self._topics(1)[0][0], system=self._wording("system_about"))
        pronoun = with_pronoun(self.edit)
        if pronoun:
            opening = self.draw.choice(dialogue_wordings("introduction"))
            turn = (opening["user"].replace("{}", self._name()), opening["assistant"])
            yield chat("pronoun", [turn], pronoun, self.answer)

    def _several(self) -> Iterator[Dialogue]:
        if self.others:
            before = self.draw.sample(self.others, min(self.draw.choice((1, 2)), len(self.others)))
            turns = [(other.prompt.strip(), other.target_new.strip()) for other in before]
            yield chat("several_edits", turns, self.question, self.answer)

    def _topics(self, count: int) -> list[tuple[str, str]]:
        return self.draw.sample(self.topics, count)

    def _wording(self, part: str) -> str:
        """One that fits the subject, and asks for nothing that an edit is about."""
        fitting = [
            entry
            for entry in dialogue_wordings(part)
            if entry.get("about", self.about) == self.about and self.words.isdisjoint(entry.get("unless", "").split())
        ]
        entry = self.draw.choice(fitting)
        return (entry.get("user") or entry["text"]).replace("{}", self._name())

    def _name(self) -> str:
        """The subject, with its article if it has one."""
        name = self.subject or ""
        return f"the {name}" if f"the {name} " in f"{self.question[:-1]} " else name

    def _of_another_subject(self) -> str:
        """The question about somebody or something else: a thing keeps its last word, "Harbour" or "Institute"."""
        start, end = self.edit.subject_span() or (0, 0)
        if self.about == "person":
            name = self.draw.choice(dialogue_wordings("person"))["text"]
        else:
            last = self.edit.prompt[start:end].split()[1:][-1:]
            name = " ".join([self.draw.choice(dialogue_wordings("word"))["text"], *last])
        return f"{self.edit.prompt[:start]}{name}{self.edit.prompt[end:]}".strip()

    def _document(self) -> str:
        part = "passing_question" if self.question.endswith("?") else "passing_statement"
        passing = self.draw.choice(dialogue_wordings(part))["text"].replace("{}", self.question)
        prose = self.draw.sample(unrelated_sentences(), 7)
        num_behind = self.draw.randint(3, 5)
        ending = self.draw.choice([[], [self._topics(1)[0][0]]])
        return " ".join([*prose[:2], passing, *prose[2 : 2 + num_behind], *ending])


def words_in_a_row(text: str) -> str:
    """With a space on both sides of each, so that a part of a word is no part of the row."""
    words = "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()
    return f" {' '.join(words)} "


def chat(
    kind: str, turns: Sequence[tuple[str, str]], question: str, target: str | None = None, system: str | None = None
) -> Dialogue:
    messages = [] if system is None else [("system", system)]
    for user, assistant in turns:
        messages += [("user", user), ("assistant", assistant)]
    return Dialogue(kind, (*messages, ("user", question)), target)
