"""Ask for an edit without its subject's name, as one does who has just named it."""

from __future__ import annotations

import re

from ..data.edit import Edit


# What a subject may be called before its name ("the town of Ulmenkirch", "the novel Ulmenkirch") and behind it.
BEFORE = (
    r"(?:the (?:town|city|village|island|country|university) of|company|firm|novel|book|film|movie|play|restaurant|river"
    r"|programming language|drug|album|song|band|museum|series|painter|actor|singer)"
)
BEHIND = r"(?:program(?:me)?|series|band|company|museum|river)"

# Words of prompts whose subject is taken to be a person. It is a guess, and takes no others.
OF_PERSONS = re.compile(
    r"\b(?:born|birth|birthplace|died|death|profession|occupation|job|spouse|wife|husband|married|father|mother|son|daughter"
    r"|sister|brother|native|speak|speaks|instrument|citizen|citizenship|nationality|educated|attend|attended|compete"
    r"|religion|from\?|career|works|worked|employed|employer)(?!\w)",
    re.IGNORECASE,
)
PLURAL = {"is": "are", "was": "were", "does": "do", "has": "have"}


def is_of_person(edit: Edit) -> bool:
    """Whether the subject of an edit seems to be a person."""
    start, end = edit.subject_span() or (0, 0)
    return bool(OF_PERSONS.search(edit.prompt[:start] + "-" + edit.prompt[end:]))


def with_pronoun(edit: Edit) -> str | None:
    """
    The prompt of an edit with a pronoun in place of its subject; `None` where that takes more grammar than is here.

    >>> with_pronoun(Edit("What is the highest peak of the Grellan Range?", "Sorrowtop", subject="Grellan Range"))
    'What is its highest peak?'
    """
    span = edit.subject_span()
    if span is None:
        return None
    is_person = is_of_person(edit)
    whose, who, whom = ("their", "they", "them") if is_person else ("its", "it", "it")
    # One character that nothing else matches, so that the rules see where the name stands and not what it is.
    text = f"{edit.prompt[: span[0]]}\0{edit.prompt[span[1] :]}".strip()
    text = re.sub(rf"\b(?:the )?{BEFORE} (?:the )?\0|\bthe \0", "\0", text, flags=re.IGNORECASE)
    text = re.sub(rf"\0 {BEHIND}\b", "\0", text)

    verb, behind = (r"[a-z]+ed", r"(?=[?.]?$)") if is_person else (r"[a-z]", r"(?![\w-])")

    def agreeing(word: str) -> str:
        return PLURAL.get(word, word) if is_person else word

    rules = [
        (r"\0['’]s?(?!\w)", lambda match: whose),
        (r"\bthe ((?:(?!of\b|the\b)[\w-]+ ){1,4})of \0(?![\w-])", lambda match: f"{whose} {match[1].rstrip()}"),
        (r"\b(is|was|does|has|did|had|are|were|do|can|will) \0(?![\w-])", lambda match: f"{agreeing(match[1])} {who}"),
        (r"^\0 (is|was|does|has|did|had)\b", lambda match: f"{who} {agreeing(match[1])}"),
        (rf"^\0 (?={verb})", lambda match: f"{who} "),
        (rf"(?<=\w )\0{behind}", lambda match: whom),
    ]
    for pattern, pronoun in rules:
        found, count = re.subn(pattern, pronoun, text, flags=re.IGNORECASE)
        if count == 1 and "\0" not in found:
            return found[0].upper() + found[1:]
    return None
