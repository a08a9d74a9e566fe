"""Which names a text holds, letter by letter, and where a longer name is another."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from rapidfuzz.distance import OSA

from .anchors import Match
from .name_index import Name
from .names import Names
from .small_words import BEFORE_HYPHEN, BEHIND_HYPHEN, MAKE_ANOTHER, SMALL, TITLES
from .spelled import Spelled


HYPHENS = frozenset("-‐‑–")
APOSTROPHES = frozenset("'’‘ʼ`´′")
ENDS = frozenset(".!?:;\n。！？")
SHORTEST_NEAR = 5  # letters of a name that is also found with one of them wrong
SHORTEST_WRONG = 3  # letters of the word in it in which one may be
SHORTEST_FIRST = 7  # and in which it may be the first


def search(
    spelled: Spelled, names: Names, everyday: frozenset[str], near: bool, expert_of: Callable[[int], int | None]
) -> None:
    """
    Find names in what a text has grown by.

    Args:
        spelled ([`Spelled`]): The text; its `found` is extended.
        names ([`Names`]): Of all edits.
        everyday (`frozenset[str]`): Words that are no other word with a letter wrong.
        near (`bool`): Whether to find names with one letter wrong.
        expert_of (`Callable`): The expert of an edit.
    """
    if spelled.by != names.version:
        spelled.found, spelled.searched, spelled.by = [], 0, names.version
    index, key, starts = names.index, spelled.key, spelled.starts
    known = {(match.place, match.edit, match.name) for match in spelled.found}
    for end in spelled.ends[bisect_right(spelled.ends, spelled.searched) :]:
        wall = bisect_right(spelled.walls, end - 1)
        lowest = max(end - index.longest - 1, spelled.walls[wall - 1] if wall else 0)
        is_odd = False
        for i in range(bisect_left(starts, end) - 1, -1, -1):
            begin = starts[i]
            if begin < lowest:
                break
            word_end = min(starts[i + 1], end) if i + 1 < len(starts) else end
            is_odd = is_odd or key[begin:word_end] not in everyday
            length = end - begin
            matches: list[tuple[int, Name, int]] = []
            if length in index.lengths:
                found = names.exactly(key[begin:end])
                matches += [(end, name, 0) for name in found if _is_exact(spelled, begin, end, name, everyday)]
            if length - 1 in index.lengths and key[end - 1] == "s":
                found = names.exactly(key[begin : end - 1])
                matches += [(end - 1, name, 0) for name in found if _is_exact(spelled, begin, end - 1, name, everyday)]
            if near and is_odd and not matches and length >= SHORTEST_NEAR - 1:
                found = names.perhaps(key[begin:end])
                matches += [(end, name, 1) for name in found if _is_near(spelled, begin, end, name, everyday)]
            for stop, name, wrong in matches:
                expert = expert_of(name.edit)
                if expert is None:
                    continue
                match = _match(spelled, begin, stop, name, wrong, expert)
                if (match.place, match.edit, match.name) not in known:
                    known.add((match.place, match.edit, match.name))
                    spelled.found.append(match)
    spelled.searched = len(key)


def _match(spelled: Spelled, begin: int, end: int, name: Name, wrong: int, expert: int) -> Match:
    last, length = spelled.last[end - 1], len(name.key)
    return Match(
        first=spelled.first[begin],
        last=last,
        start=last,
        score=1 - wrong / length,
        edit=name.edit,
        expert=expert,
        is_prompt=False,
        threshold=1 - name.is_near / length,
        reached=last,
        place=(begin, end),
        name=name.text,
    )


def _is_exact(spelled: Spelled, begin: int, end: int, name: Name, everyday: frozenset[str]) -> bool:
    """
    Whether a name is meant whose letters stand in a text: in its own capitals, if it needs them, and not where everyday words
    happen to hold its letters, as "air port" does those of "airport".
    """
    if name.is_cased:
        capitals = [char.isupper() for char in name.text if char != " "]
        if capitals != spelled.capitals[begin:end]:
            return False
    places, place = set(), begin
    for word in name.text.split(" "):
        place += len(word)
        places.add(place)
    low, high = bisect_right(spelled.starts, begin), bisect_left(spelled.starts, end)
    parted = [
        spelled.starts[i] for i in range(low, high) if spelled.starts[i] not in places and spelled.gaps[i].isspace()
    ]
    return not parted or any(word not in everyday for word in spelled.words(begin, end))


def _is_near(spelled: Spelled, begin: int, end: int, name: Name, everyday: frozenset[str]) -> bool:
    """
    Whether a name is meant of whose letters one is missing, added, wrong, or swapped with the next: in one of its words, which
    is not another word thereby, nor another number.
    """
    if name.is_cased or OSA.distance(spelled.key[begin:end], name.key, score_cutoff=1) != 1:
        return False
    words, own = spelled.words(begin, end), name.text.casefold().split(" ")
    if len(words) != len(own):
        return False
    wrong = [(word, meant) for word, meant in zip(words, own, strict=True) if word != meant]
    if len(wrong) != 1:
        return False
    ((word, meant),) = wrong
    if not (word.isalpha() and meant.isalpha()) or len(meant) < SHORTEST_WRONG or word in everyday:
        return False
    # Nobody mistakes the first letter of a short word: Gambia is not Zambia.
    is_first = len(word) == len(meant) and word[0] != meant[0] and word[1:] == meant[1:]
    return word + "s" != meant and not (is_first and len(meant) < SHORTEST_FIRST)


# ------------------------------------------------------------------------------------------------------- what counts where


def named(spelled: Spelled, names: Names, column: int, is_over: bool, threshold: float | None) -> list[Match]:
    """
    The names that count at a column.

    Args:
        column (`int`): What stands behind it has no say.
        is_over (`bool`): Whether the text is known to end there, so that its last word is complete.
        threshold (`float`, *optional*): The lowest score.
    """
    counting = [
        match
        for match in spelled.found
        if match.reached <= column
        and (threshold is None or match.score >= threshold)
        and _counts(spelled, names, match, column, is_over)
    ]
    exact = [match for match in counting if match.score == 1]
    near = [match for match in counting if match.score < 1 and not any(_overlap(match, other) for other in exact)]
    # A text that is equally near to two names means neither of them for sure.
    return exact + [
        match
        for match in near
        if not any(
            _overlap(match, other) and other.name.casefold() != match.name.casefold() and other.score >= match.score
            for other in near
        )
    ]


def _overlap(one: Match, other: Match) -> bool:
    return one.place[0] < other.place[1] and other.place[0] < one.place[1]


def _counts(spelled: Spelled, names: Names, match: Match, column: int, is_over: bool) -> bool:
    stop, (begin, end) = spelled.length(column), match.place
    rest = spelled.key[end : spelled.word(end, stop)]
    is_near = match.score < 1
    if rest not in ("", "s") or (is_near and rest):
        return False
    if is_near and not is_over and column <= match.last:
        return False
    return not (
        _goes_on(spelled, names, match, end + len(rest), stop) or _has_begun(spelled, names, match, begin, stop)
    )


def _goes_on(spelled: Spelled, names: Names, match: Match, end: int, stop: int) -> bool:
    """Whether what stands behind a name makes another of it: neither Miami Vice is Miami, nor Berg-Olsen Berg."""
    if stop <= end:
        return False
    gap = spelled.gap_before(end)
    word = spelled.key[end : spelled.word(end + 1, stop)]
    if len(gap) == 1 and gap in HYPHENS:
        return word not in BEHIND_HYPHEN and not _is_so_in_prompt(names, match, behind=True)
    if (
        gap == " " and word[0].isdigit() and _is_part(names, match)
    ):  # "Velofox", of the Velofox 9, is not the Velofox 8
        return True
    is_capital = spelled.capitals[end] and gap.isspace() and "\n" not in gap
    return (
        is_capital and _capitals_tell(spelled, match.place, stop) and not _is_so_in_prompt(names, match, behind=True)
    )


def _has_begun(spelled: Spelled, names: Names, match: Match, begin: int, stop: int) -> bool:
    """Whether what stands before a name makes another of it: neither New Mexico is Mexico, nor Tom Ashford Ashford."""
    gap = spelled.gap_before(begin)
    i = bisect_left(spelled.starts, begin) - 1
    if i < 0 or begin in spelled.walls:
        return False
    before = spelled.starts[i]
    word = spelled.key[before:begin]
    if len(gap) == 1 and gap in HYPHENS:
        return word not in BEFORE_HYPHEN and not _is_so_in_prompt(names, match, behind=False)
    # An initial, or "St.", belongs to what follows; a title does not.
    is_initial = gap.strip() == "." and len(word) <= 2 and word not in TITLES
    if (not gap.isspace() or "\n" in gap) and not is_initial:
        return False
    is_capital = spelled.capitals[before]
    if word in MAKE_ANOTHER and is_capital == spelled.capitals[begin]:
        return not _is_so_in_prompt(names, match, behind=False)
    # With a letter wrong, "Tom Hanks" is no Hank either, though any first word has a capital.
    begins_sentence = match.score == 1 and bool(set(spelled.gaps[i]) & ENDS)
    return (
        is_capital
        and not begins_sentence
        and word not in TITLES
        and word not in SMALL
        and _capitals_tell(spelled, match.place, stop)
        and not _is_so_in_prompt(names, match, behind=False)
    )


def _capitals_tell(spelled: Spelled, place: tuple[int, int], stop: int) -> bool:
    """Whether capitals mark names: not where all words have them, as in a headline, or where one shouts."""
    beside = []
    for i in range(bisect_left(spelled.starts, place[0]) - 1, -1, -1):
        if set(spelled.gaps[i]) & ENDS:
            break
        beside.append(spelled.capitals[spelled.starts[i]])
    for i in range(bisect_left(spelled.starts, place[1]), bisect_left(spelled.starts, stop)):
        if set(spelled.gaps[i]) & ENDS:
            break
        beside.append(spelled.capitals[spelled.starts[i]])
    return len(beside) < 2 or not all(beside)


def _is_so_in_prompt(names: Names, match: Match, behind: bool) -> bool:
    """
    Whether a name has a capitalised word behind it, or before it, in the edit's own prompt; not one that is a part of another
    name of the edit, which stands there.
    """
    if _is_part(names, match):
        return False
    own = match.name.casefold().split(" ")
    for words in (name.text.split(" ") for name in names.of(match.edit) if name.is_prompt):
        folded = [word.casefold() for word in words]
        for i in range(len(words) - len(own) + 1):
            place = i + len(own) if behind else i - 1
            is_name = folded[i : i + len(own)] == own and 0 <= place < len(words)
            if is_name and words[place][0].isupper() and (behind or folded[place] not in SMALL):
                return True
    return False


def _is_part(names: Names, match: Match) -> bool:
    """Whether a name is a part of another one of its edit."""
    own = f" {match.name} ".casefold()
    others = [name.text for name in names.of(match.edit) if not name.is_prompt]
    return any(own in f" {other} ".casefold() and len(other) > len(match.name) for other in others)


def respelled_prompt(
    spelled: Spelled, names: Names, column: int, said_until: int, expert_of: Callable[[int], int | None]
) -> Match | None:
    """
    The edit whose whole prompt has been said last, in whatever spelling: of several the longest prompt's, then the latest.

    Args:
        column (`int`): Where the question ends.
        said_until (`int`): The last column up to there that says something.
    """
    index, stop = names.index, spelled.length(said_until)
    if not index.prompt_lengths or not stop:
        return None
    wall = bisect_right(spelled.walls, stop - 1)
    lowest = max(stop - max(index.prompt_lengths), spelled.walls[wall - 1] if wall else 0)
    for begin in spelled.starts[bisect_left(spelled.starts, lowest) : bisect_left(spelled.starts, stop)]:
        if stop - begin in index.prompt_lengths:
            found: Sequence[Name] = names.prompts_of_letters(spelled.key[begin:stop])
            if found:
                edit = max(name.edit for name in found)
                expert = expert_of(edit)
                if expert is not None:
                    return Match(spelled.first[begin], column, column, 1.0, edit, expert, True, 1.0, column)
    return None


def begins_with_another(own: Match, found: Sequence[Match], counting: Sequence[Match]) -> bool:
    """Whether the name with which an edit's own prompt begins is the end of another one: "North Zembla lies in"."""
    names = [match for match in found if match.edit == own.edit and match.first == own.first and match.score == 1]
    return bool(names) and not any(match in counting for match in names)
