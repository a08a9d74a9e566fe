"""An edit: what a model should answer from now on."""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal

import regex

from ..routing.small_words import is_everyday
from ..routing.spelled import written


# What measures an edit: one text, or several.
ONE_OR_SEVERAL = (
    "rephrase_prompt",
    "locality_prompt",
    "locality_ground_truth",
    "portability_prompt",
    "portability_ground_truth",
)

# Words that may stand between two parts of a name.
SMALL_WORD = r"(?:of|the|and|de|la|le|von|van|der|den|du|da|al|bin|in|for|&)"

# A capitalised word, such as "iPad" or "2SM", or a number that follows one; small words may stand between two of them, and
# "al-" before one. A possessive is no part of a name.
NAME = regex.compile(
    rf"(?<!\w)(?:\p{{Ll}}|\d+)?\p{{Lu}}[\w'’.&-]*(?:(?:\s+{SMALL_WORD})*"
    r"\s+(?:\p{Ll}{1,3}[-'’])?(?:\p{Ll}?\p{Lu}|\d)[\w'’.&-]*)*(?<!['’]s)(?<![.'’-])"
)

# Capitalised at the beginning of a sentence, and yet no part of a name.
FUNCTION_WORD = regex.compile(
    r"(?:a|an|the|this|that|these|those|there|here|it|its|he|she|his|her|they|their|we|our|you|your|i|my|one|and|or|but|if"
    r"|as|in|on|at|of|by|to|for|from|with|about|after|before|what|which|who|whom|whose|when|where|why|how|is|are|was|were"
    r"|did|does|do|has|have|had|can|could|will|would|should|may|must|not|no|all|some|every|each|both|please|name|tell|today"
    rf"|yesterday|now|then|once)(?:['’]s)?(?![\w.]) *(?-i:{SMALL_WORD}\s+)*",
    regex.IGNORECASE,
)


@dataclass(frozen=True)
class Edit:
    """
    One correction. The names are those of the editing benchmarks (EasyEdit's keys).

    Args:
        prompt (`str`): What the model is asked.
        target_new (`str`): What it should answer.
        subject (`str`, *optional*): What the fact is about, a part of `prompt`. It lets other phrasings find the
            edit; left out, it is taken to be the longest name in the prompt.
        aliases (`str` or `Sequence[str]`, *optional*):
            Other names of the subject, such as "UK" of the United Kingdom, or one of them: they find the edit as the subject
            does. Case, accents, quotes, hyphens and spaces need no alias, nor does a typo.
        rephrase_prompt (`str` or `Sequence[str]`, *optional*):
            Another phrasing, or several, to measure generality. Never trained on.
        locality_prompt (`str` or `Sequence[str]`, *optional*):
            An unrelated prompt, or several, to measure locality. Never trained on.
        locality_ground_truth (`str` or `Sequence[str]`, *optional*): The answer to it, or one to each of them.
        ground_truth (`str`, *optional*): What was held true before.
        portability_prompt (`str` or `Sequence[str]`, *optional*):
            A question whose answer follows from the edit (by another fact, by another name of the subject, by the
            reversed relation), or several. Never trained on.
        portability_ground_truth (`str` or `Sequence[str]`, *optional*): The answer to it, or one to each of them.

    Raises:
        ValueError: If prompt or target is empty, a field is no text, the subject is not a part of the prompt, an alias has no
            letters or is an everyday word such as "it", or prompts and their ground truth do not match.
    """

    prompt: str
    target_new: str
    subject: str | None = None
    rephrase_prompt: str | tuple[str, ...] | None = None
    locality_prompt: str | tuple[str, ...] | None = None
    locality_ground_truth: str | tuple[str, ...] | None = None
    ground_truth: str | None = None
    portability_prompt: str | tuple[str, ...] | None = None
    portability_ground_truth: str | tuple[str, ...] | None = None
    aliases: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "target_new"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"`{name}` of an edit must be a text that is not empty; got {value!r}.")
        for name in ("subject", "ground_truth"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise ValueError(f"`{name}` of an edit must be a text; got {value!r}.")
        for name in ONE_OR_SEVERAL:
            value = getattr(self, name)
            texts = value if isinstance(value, (list, tuple)) else (value,)
            if value is not None and not (texts and all(isinstance(text, str) for text in texts)):
                raise ValueError(f"`{name}` of an edit must be a text, or a list of texts; got {value!r}.")
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name in self.__dataclass_fields__.keys() - {"aliases"}:
            for text in _several(getattr(self, name)):
                check_text(f"`{name}` of an edit", text)
        if self.subject is not None and (not self.subject.strip() or self.subject not in self.prompt):
            raise ValueError(
                f"`subject` must be a part of `prompt`, letter by letter; got {self.subject!r} for {self.prompt!r}. "
                f"Leave it out to have it found."
            )
        if self.aliases is not None:
            object.__setattr__(self, "aliases", checked_aliases(self))
        for kind in ("locality", "portability"):
            self._check_ground_truth(kind)

    def _check_ground_truth(self, kind: str) -> None:
        prompts, answers = getattr(self, f"{kind}_prompt"), getattr(self, f"{kind}_ground_truth")
        if answers is None:
            if kind == "portability" and prompts is not None:
                raise ValueError(f"`portability_prompt` needs a `portability_ground_truth`; got {prompts!r} alone.")
        elif type(prompts) is not type(answers) or len(_several(prompts)) != len(_several(answers)):
            raise ValueError(
                f"`{kind}_ground_truth` must be one text if `{kind}_prompt` is one, else a list of as many; "
                f"got {answers!r} for {prompts!r}."
            )

    def probes(self, kind: Literal["rephrase", "locality", "portability"]) -> list[tuple[str, str | None]]:
        """The prompts that measure the edit, each with its answer; `None` where the answer is not known.

        A rephrasing asks for `target_new`. Blank prompts are left out, and so is what follows from an edit if its answer is
        blank: every text begins with nothing.
        """
        prompts = _several(getattr(self, f"{kind}_prompt"))
        answers: tuple[str | None, ...] = (self.target_new,) * len(prompts)
        if kind != "rephrase":
            answers = _several(getattr(self, f"{kind}_ground_truth")) or (None,) * len(prompts)
        pairs = [(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if prompt.strip()]
        if kind == "portability":
            pairs = [(prompt, answer) for prompt, answer in pairs if answer and answer.strip()]
        return pairs

    def subject_span(self) -> tuple[int, int] | None:
        """Where the subject stands in the prompt, as characters; `None` where there is none to be found."""
        if self.subject is not None:
            start = self.prompt.rindex(self.subject)
            return start, start + len(self.subject)
        names = []
        for match in NAME.finditer(self.prompt):
            start, end = match.span()
            # The first word of a sentence is capitalised whatever it is.
            word = FUNCTION_WORD.match(self.prompt, start, end)
            names.append((word.end() if word and (start == 0 or word.end() == end) else start, end))
        # Alone, it is a name only where there is no other.
        names = [(start, end) for start, end in names if start < end]
        certain = [(start, end) for start, end in names if start > 0 or " " in self.prompt[start:end]]
        return max(certain or names, key=lambda span: (span[1] - span[0], span[0]), default=None)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, as JSON has them."""
        fields = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def check_text(name: str, text: str) -> None:
    """
    Raises:
        ValueError: If a text holds half a character, which no file and no tokenizer takes.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        where = f"{text[error.start]!r} at {error.start}"
        raise ValueError(f"{name} holds half a character ({where}): it is no text. Read it again as UTF-8.") from None


def checked_aliases(edit: Edit) -> tuple[str, ...] | None:
    """The aliases of an edit, without those that are its subject in another spelling; `None` where none is left."""
    texts = (edit.aliases,) if isinstance(edit.aliases, str) else edit.aliases
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"`aliases` of an edit must be a list of texts; got {edit.aliases!r}.")
    span = edit.subject_span()
    if texts and span is None:
        raise ValueError(
            f"`aliases` are other names of the subject, and none is found in {edit.prompt!r}. Pass `subject` as well; the "
            f"aliases are {texts!r}."
        )
    subject = key_of(edit.prompt[slice(*span)]) if span else ""
    known, kept = {subject}, []
    for text in texts:
        reason = wrong_alias(text)
        if reason:
            raise ValueError(f"The alias {text!r} of the edit {edit.prompt!r} {reason}.")
        check_text("`aliases` of an edit", text)
        if key_of(text) == subject:
            warnings.warn(
                f"The alias {text!r} of {edit.prompt!r} is its subject in another spelling, which finds it anyhow.",
                stacklevel=4,
            )
        if key_of(text) not in known:
            known.add(key_of(text))
            kept.append(text)
    return tuple(kept) or None


def wrong_alias(text: str) -> str | None:
    """Why a text can be no alias."""
    if not key_of(text):
        return "has no letters: it would be found nowhere. Leave it out"
    if is_everyday(written(text)):
        return "is an everyday word, which would be found everywhere. Leave it out, or write it with its capitals"
    return None


def key_of(name: str) -> str:
    """What of a name is compared: names of one key are one name."""
    return written(name).replace(" ", "").casefold()


def _several(texts: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else texts or ()
