"""An edit: what a model should answer from now on."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any


# A capitalised word, or a number that follows one; small words such as "of" may stand between two of them.
NAME = re.compile(
    r"[^\W\d_a-z][\w'’.&-]*(?:(?:\s+(?:of|the|and|de|la|le|von|van|der|den|du|da|al|bin|in|for|&))*"
    r"\s+[^\W_a-z][\w'’.&-]*)*"
)

# Capitalised at the beginning of a sentence, and yet no part of a name.
QUESTION_WORD = re.compile(
    r"(?:a|an|the|in|on|at|of|by|to|for|from|what|which|who|whom|whose|when|where|why|how|is|are|was|were|did|does|do|has"
    r"|have|had|can|could|will|would|name|tell) +",
    re.IGNORECASE,
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
        rephrase_prompt (`str`, *optional*): Another phrasing, to measure generality. Never trained on.
        locality_prompt (`str`, *optional*): An unrelated prompt, to measure locality. Never trained on.
        locality_ground_truth (`str`, *optional*): The answer to it.
        ground_truth (`str`, *optional*): What was held true before.

    Raises:
        ValueError: If prompt or target is empty, a field is no text, or the subject is not a part of the prompt.
    """

    prompt: str
    target_new: str
    subject: str | None = None
    rephrase_prompt: str | None = None
    locality_prompt: str | None = None
    locality_ground_truth: str | None = None
    ground_truth: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "target_new"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise ValueError(f"`{name}` of an edit must be a text that is not empty; got {value!r}.")
        for name, value in self.to_dict().items():
            if not isinstance(value, str):
                raise ValueError(f"`{name}` of an edit must be a text; got {value!r}.")
        if self.subject is not None and (not self.subject.strip() or self.subject not in self.prompt):
            raise ValueError(
                f"`subject` must be a part of `prompt`, letter by letter; got {self.subject!r} for {self.prompt!r}. "
                f"Leave it out to have it found."
            )

    def subject_span(self) -> tuple[int, int] | None:
        """Where the subject stands in the prompt, as characters; `None` where there is none to be found."""
        if self.subject is not None:
            start = self.prompt.rindex(self.subject)
            return start, start + len(self.subject)
        spans = [match.span() for match in NAME.finditer(self.prompt)]
        # The first word of a sentence is capitalised whatever it is: alone, it is no name.
        names = [(start, end) for start, end in spans if start > 0 or " " in self.prompt[start:end]]
        names = [(self._skip_question_word(start, end), end) for start, end in names]
        return max(names, key=lambda span: (span[1] - span[0], span[0]), default=None)

    def _skip_question_word(self, start: int, end: int) -> int:
        word = QUESTION_WORD.match(self.prompt, start, end)
        return word.end() if start == 0 and word else start

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}
