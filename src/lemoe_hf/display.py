"""Texts of strangers, shown so that they can be read and do nothing else."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any


# Controls of both sets, half a character, and what turns the direction of text around it or is not seen at all.
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)


def escaped(found: re.Match[str]) -> str:
    """A character as JSON and Python write it."""
    return json.dumps(found.group())[1:-1]


def visible(value: Any) -> str:
    """A value as one line of text, with an escape in the place of whatever would act on a terminal, or hide in it."""
    return HIDDEN.sub(escaped, str(value))


def as_json(value: Any) -> str:
    """JSON for people and programs, in which such characters are escaped as well."""
    text = json.dumps(value, ensure_ascii=False, indent=2)
    return re.sub(HIDDEN.pattern.replace("[\x00-\x1f", "[", 1), escaped, text)  # the lines of JSON itself stay


def is_plain(name: str) -> bool:
    """Whether a name of a file or a folder holds letters, digits and a few marks only, and no code."""
    return bool(name) and all(each in " ._+-" or unicodedata.category(each)[0] in "LMN" for each in name)
