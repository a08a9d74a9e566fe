"""Text as names are compared: what of each character counts."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import NamedTuple


# Letters that have no accent to be taken away, and are written without it all the same.
PLAIN = {"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ħ": "h", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th", "&": "and"}
# Marks that may be left out: accents, Hebrew points, Arabic vowels. In other scripts they are letters.
ACCENTS = (
    (0x0300, 0x036F),
    (0x0483, 0x0487),
    (0x0591, 0x05C7),
    (0x0610, 0x061A),
    (0x064B, 0x065F),
    (0x0670, 0x0670),
    (0x06D6, 0x06ED),
    (0x1AB0, 0x1AFF),
    (0x1DC0, 0x1DFF),
    (0x20D0, 0x20FF),
    (0xFE00, 0xFE2F),  # variation selectors among them
)
# Scripts without spaces between words: each character may begin a name. Hangul, where particles stand behind a noun, too.
UNSPACED = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1100, 0x115F),
    (0x1780, 0x17FF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x30FF),
    (0x3400, 0x9FFF),
    (0x20000, 0x3FFFF),
)
SIGNS = "™®©℠"
BEHIND_A_LETTER = "+#%"  # a part of C++ and C#, but not of a heading or a list


class Letter(NamedTuple):
    """
    A character of a text.

    Args:
        key (`str`): The letters that are compared; none of a character that parts words, or that is left out.
        parts (`bool`): Whether it parts words.
        is_upper (`bool`): Whether it is a capital.
        is_alone (`bool`): Whether it is a word of its own.
        joins (`bool`): Whether it goes on with the character before it, whatever that is.
    """

    key: str
    parts: bool = False
    is_upper: bool = False
    is_alone: bool = False
    joins: bool = False


@cache
def letter(char: str) -> Letter:
    """What of a character counts: not its case, accents or width."""
    if char in SIGNS or unicodedata.category(char) == "Cf":
        return Letter("")
    key, is_upper, parts = "", False, False
    for part in unicodedata.normalize("NFKD", char):
        kind = unicodedata.category(part)
        if kind[0] in "LNM" or kind == "Sc" or part in BEHIND_A_LETTER or part == "&":
            is_upper = is_upper or kind in ("Lu", "Lt")
            folded = unicodedata.normalize("NFKD", part.casefold())
            key += "".join(PLAIN.get(each, each) for each in folded if not within(each, ACCENTS))
        else:
            parts = True
    joins = unicodedata.category(char) in ("Mn", "Mc") or within(char, ((0x1160, 0x11FF),))
    is_alone = not joins and (char == "&" or (key != "" and within(key[0], UNSPACED)))
    return Letter(key, parts and not key, is_upper, is_alone, joins)


def within(char: str, ranges: tuple[tuple[int, int], ...]) -> bool:
    return any(low <= ord(char) <= high for low, high in ranges)
