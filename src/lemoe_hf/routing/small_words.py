"""Words that tell whether a name goes on: before it, behind it, or not at all."""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Capitalised at the beginning of a sentence or a title, and yet no part of a name.
SMALL = words(
    """
a about after all also am an and any are around as at be been before between both but by can could did do does during
each every for from had has have he her here hers him his how i if in into is it its may me might mine must my name
near no not now of on once one only or our out over please she should since so some tell than that the their theirs
them then there these they this those through to today too under until up us very was we were what when where which
who whom whose why will with would yes you your
"""
)
# Words that do not belong to the name behind them, though they may have a capital.
TITLES = words(
    """
a actor actress admiral answer april architect assistant august author captain ceo cfo chair chairman chancellor coach
colonel cto dame december director doctor dr emperor fact february founder frau friday general governor herr january
judge july june justice king lady lord madame major march may mayor minister miss monday monsieur mr mrs ms note
november october pope president prime prince princess prof professor q queen question saturday senator senor senora
september singer sir sunday system thursday tuesday user vice wednesday
"""
)
# Words that make another name of the one behind them, wherever they stand.
MAKE_ANOTHER = words(
    """
cape central east eastern fort great greater inner lake little lower mount new north northeast northern northwest old
outer port saint san santa south southeast southern southwest st upper west western
"""
)
# What may follow a name behind a hyphen without making another of it.
BEHIND_HYPHEN = words(
    """
area based born led like made owned related run specific style wide
"""
)
# What may stand before it.
BEFORE_HYPHEN = words(
    """
all anti ex mid non post pre pro
"""
)


def is_everyday(name: str) -> bool:
    """Whether a name, as it is stored, is made of everyday words, and has not the capitals of an abbreviation."""
    words = name.split(" ")
    return all(word.casefold() in SMALL for word in words) and not any(
        word.isupper() and len(word) > 1 for word in words
    )
