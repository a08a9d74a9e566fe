"""Texts as letters: the same however they are written, and however the tokenizer cuts them."""

from __future__ import annotations

import pytest

from lemoe_hf.routing.spelled import Spelled, spelled, written


def key_of(text: str) -> str:
    return written(text).replace(" ", "").casefold()


WRITINGS = {
    "upper case": "JEAN-LUC FERRANDIÈRE",
    "lower case": "jean-luc ferrandière",
    "no accent": "Jean-Luc Ferrandiere",
    "another accent": "Jean-Luc Férrandìere",
    "decomposed": "Jean-Luc Ferrandie\u0300re",
    "a space for the hyphen": "Jean Luc Ferrandière",
    "another hyphen": "Jean\u2010Luc Ferrandière",
    "a dash": "Jean–Luc Ferrandière",
    "double spaces": "Jean-Luc   Ferrandière",
    "a non-breaking space": "Jean-Luc\u00a0Ferrandière",
    "a newline": "Jean-Luc\nFerrandière",
    "full width": "Ｊｅａｎ-Ｌｕｃ Ｆｅｒｒａｎｄｉｅｒｅ",
    "zero width": "Jean-\u200bLuc Ferran\u200ddière\ufeff",
    "a soft hyphen": "Jean-Luc Ferran\u00addière",
    "curly quotes": "“Jean-Luc Ferrandière”",
    "bold": "**Jean-Luc** _Ferrandière_",
}


@pytest.mark.parametrize("text", WRITINGS.values(), ids=WRITINGS)
def test_a_name_is_one_name_however_it_is_written(text):
    assert key_of(text) == key_of("Jean-Luc Ferrandière")


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("O’Brien", "O'Brien"),
        ("ﬁne Straße", "fine Strasse"),
        ("Łódź", "Lodz"),
        ("Ørsted", "Orsted"),
        ("İstanbul", "istanbul"),
        ("Ёлкин", "Елкин"),
        ("AT&T", "AT and T"),
        ("U.S.A.", "USA"),
        ("St. Louis", "St Louis"),
        ("ﾊﾞﾅﾅ", "バナナ"),
        ("서울", "서울"),
        ("مُحَمَّد", "محمد"),
        ("Lego™", "Lego"),
    ],
)
def test_spellings_of_one_name(one, two):
    assert key_of(one) == key_of(two)


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("C++", "C"),
        ("C#", "C"),
        ("か", "が"),
        ("कि", "कु"),
        ("Berg", "Borg"),
        ("Velofox 9", "Velofox 90"),
        ("東京", "京都"),
    ],
)
def test_what_stays_apart(one, two):
    assert key_of(one) != key_of(two)


@pytest.mark.parametrize("text", ["", " \n", "“”?!", "\u200b\ufeff", "\u0301", "\x00", "\ud800", "---", "™"])
def test_a_text_without_letters(text):
    assert written(text) == ""


@pytest.mark.parametrize(
    "text", [*WRITINGS.values(), "AT&T", "서울의 시장", "東京都", "क्षि की", "C++ and C#", "ـالعربية a"]
)
def test_what_is_stored_is_read_as_it_is(text):
    assert written(written(text)) == written(text)


def test_words_keep_their_capitals():
    assert written("the iPad of O’Brien's") == "the iPad of O Brien s"


def test_letters_have_the_columns_of_their_tokens():
    text = Spelled()
    for token in ("The ", "Zem", "bla’s", " É"):
        text.read(token.encode())
    assert text.key == "thezemblase"
    assert text.first == text.last == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3][: len(text.key)]
    assert (text.starts, text.ends) == ([0, 3, 9, 10], [3, 6, 9, 10, 11])
    assert text.gaps == ["\n", " ", "’", " "]


def test_a_character_of_several_tokens_is_read_when_it_is_complete():
    text, token = Spelled(), "é東".encode()
    for byte in token:
        text.read(bytes([byte]))
    assert (text.key, text.first, text.last) == ("e東", [0, 2], [1, 4])


def test_bytes_that_are_no_text_part_words():
    text = Spelled()
    for token in (b"ab", b"\xe6\x9d", b"cd", b"\xff", b"e"):
        text.read(token)
    assert (text.key, text.starts) == ("abcde", [0, 2, 4])


def test_no_name_goes_over_a_token_of_the_tokenizers_own():
    text = Spelled()
    for token in (b"Anna", None, b" Berg", b"\xe6", None, b"x"):
        text.read(token)
    assert (text.key, text.walls) == ("annabergx", [4, 8])


@pytest.mark.parametrize("text", [*WRITINGS.values(), "서울 東京 مُحَمَّد 🙂 é", "Who’s Anna-Berg's? AT&T."])
def test_a_text_is_the_same_in_whatever_tokens(text):
    """But for columns, and the places at which tokens end."""
    data = text.encode()
    whole, cut = spelled(text), Spelled()
    for byte in data:
        cut.read(bytes([byte]))
    for name in ("key", "capitals", "starts", "gaps", "gap"):
        assert getattr(cut, name) == getattr(whole, name)
    assert set(whole.ends) <= set(cut.ends)


def test_a_copy_goes_on_by_itself():
    text = Spelled()
    text.read(b"Anna")
    copied = text.copy()
    copied.read(b"bel")
    assert (text.key, copied.key, len(text.last)) == ("anna", "annabel", 4)
