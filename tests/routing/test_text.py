"""One text, token by token: where its questions end, and on which columns which edits act."""

from __future__ import annotations

import random

import pytest

from anchored import bank, prompt, subject
from lemoe_hf.routing.anchors import Match
from lemoe_hf.routing.router import Router
from lemoe_hf.routing.text import NEAR, Option, Question, Text
from lemoe_hf.routing.vocabulary import Vocabulary
from worded import Reading, state_of, targets_of, vocabulary_of


MARK, STOP, TURN, HEADER, COLON = 20, 21, 22, 23, 24
COMMA = 5
REPLY = (TURN, HEADER, 40, 21)
WORDS = vocabulary_of((MARK,), (STOP,), special=(TURN,), headers=(HEADER,), colons=(COLON,), reply=REPLY)
NAME, OTHER = [60, 61], [70, 71]  # of two edits
SAID, ELSE = [100, 101], [110]  # and what they answer
ROUTER = Router(
    bank(prompt([50, *NAME, 51, MARK], 0), subject(NAME, 0), prompt([52, *OTHER, 53], 1), subject(OTHER, 1)),
    targets_of((0, SAID), (1, ELSE)),
    WORDS,
)
QUESTION = [55, *NAME, 56, MARK]  # of the first edit, in other words than its own


def read(tokens, vocabulary: Vocabulary = WORDS) -> Text:
    text = Text()
    text.read(tokens, range(len(tokens)), vocabulary)
    return text


def acts_on(tokens, prompt: int | None = None, cuts=(), router: Router = ROUTER) -> list[int]:
    return Reading(router, prompt).read(tokens, cuts)[1]


def span(first: int, last: int, length: int, expert: int = 0) -> list[int]:
    return [expert if first <= column <= last else -1 for column in range(length)]


# -------------------------------------------------------------------------------------------------------------- reading


def test_tokens_are_told_by_the_vocabulary():
    text = read([30, COMMA, 31, STOP, 32, MARK, STOP, 33])
    assert text.begins == [0, 0, 0, 0, 4, 4, 6, 7]
    assert text.content == [True, False, True, False, True, False, False, True]
    assert text.marks == [5]
    assert len(text) == 8


def test_without_a_vocabulary_everything_says_something():
    text = read([30, 5, 21, -2], Vocabulary())
    assert text.content == [True] * 4
    assert text.begins == [0] * 4
    assert text.marks == text.replies == []


def test_the_header_of_a_turn_says_nothing():
    text = read([30, STOP, HEADER, 40, 41, STOP, 31, TURN, 42])
    assert text.headers == [False, False, True, True, True, False, False, False, False]
    assert text.content == [True, False, False, False, False, False, True, False, True]


def test_an_answer_begins_behind_the_tokens_of_the_template():
    text = read([30, *REPLY, 31, TURN, HEADER, 40, STOP, *REPLY[:3], 32])
    assert text.replies == [4, 9]


@pytest.mark.parametrize(
    ("label", "says"), [([30], False), ([30, 31, 32], False), ([30, 31, 32, 33], True), ([30, COMMA], False)]
)
def test_a_label_says_nothing(label, says):
    """Behind other text; a text that begins so may be about it."""
    text = read([31, STOP, *label, COLON, 33])
    assert any(text.content[2 : 2 + len(label)]) is says
    assert text.content[-1]
    assert read([*label, COLON]).content[0]


def test_texts_are_read_alike_in_parts_and_as_a_whole():
    tokens = [30, STOP, HEADER, 40, STOP, 31, MARK, 32, COLON, *REPLY, 33, STOP]
    whole = read(tokens)
    for cut in range(len(tokens)):
        text = read(tokens[:cut])
        text.read(tokens[cut:], range(cut, len(tokens)), WORDS)
        assert text == whole


def test_what_was_said_last_within_a_turn():
    text = read([30, MARK, STOP, COMMA, *REPLY, COMMA, 31, STOP])
    assert [text.said_until(column) for column in (0, 1, 3, 7)] == [0, 0, 0, 0]
    assert text.said_until(8) == 8  # nothing yet
    assert [text.said_until(column) for column in (9, 10)] == [9, 9]


def test_sentences_that_say_something_are_counted():
    text = read([30, STOP, STOP, COMMA, STOP, 31, 32, MARK, 33])
    assert [text.sentences(0, last) for last in range(9)] == [0, 1, 1, 1, 1, 1, 1, 2, 2]
    assert text.sentences(2, 4) == 0
    assert text.sentences(1, 7) == 1


def test_where_a_question_is_known_to_end():
    text = read([30, MARK, *REPLY, 31, MARK])
    text.ends |= {6, 40}
    assert text.asked(0) == {1: "mark", 5: "end", 6: "end", 7: "mark"}
    assert text.asked(6) == {6: "end", 7: "mark"}


# --------------------------------------------------------------------------------------------------------- asking for


def question(*asked: tuple[float, int, tuple[int, int]], threshold: float = 1.0) -> Question:
    """What a question scores, for edits of the subjects in these columns."""
    options = [
        Option(Match(first, last, last, 1.0, edit, 10 + edit, False, 0.9, last), edit, 10 + edit, edit, threshold)
        for _, edit, (first, last) in asked
    ]
    return Question(9, "mark", None, options, [score for score, *_ in asked])


ASKED = {
    "too close to tell: the first, whose wording is more alike": ([(3.0, 5, (0, 1)), (4.9, 7, (0, 1))], 5),
    "far enough apart": ([(3.0, 5, (0, 1)), (3.1 + NEAR, 7, (0, 1))], 7),
    "the first is better": ([(4.9, 5, (0, 1)), (3.0, 7, (0, 1))], 5),
    "the first is below its threshold, however close": ([(0.5, 5, (0, 1)), (1.5, 7, (0, 1))], 7),
    "both are": ([(0.5, 5, (0, 1)), (0.9, 7, (0, 1))], None),
    "of two subjects the better": ([(3.0, 5, (0, 1)), (3.1, 7, (3, 4))], 7),
    "whichever stands first": ([(3.1, 5, (0, 1)), (3.0, 7, (3, 4))], 5),
    "of two alike the last": ([(3.0, 5, (0, 1)), (3.0, 7, (3, 4))], 7),
    "none": ([], None),
}


@pytest.mark.parametrize(("scores", "edit"), ASKED.values(), ids=ASKED)
def test_which_edit_is_asked_for(scores, edit):
    option = question(*scores).asked_for()
    assert (option and option.edit) == edit


def test_subjects_that_have_been_asked_about_may_be_excluded():
    both = question((3.0, 5, (0, 1)), (4.0, 7, (3, 4)))
    assert both.asked_for([(3, 4)]).edit == 5
    assert both.asked_for([(0, 1), (3, 4)]) is None


def test_a_threshold_of_its_own():
    assert question((1.0, 5, (0, 1)), threshold=1.0).asked_for().edit == 5
    assert question((0.0, 5, (0, 1)), threshold=float("-inf")).asked_for().edit == 5


# --------------------------------------------------------------------------------------------------------------- acting


PROMPTS = {
    "at a mark": (QUESTION, 4),
    "at a mark, and on to the end": ([*QUESTION, COMMA, STOP], 4),
    "one sentence may follow": ([*QUESTION, 57, 58, STOP], 4),
    "at the end": ([55, *NAME, 56], 3),
    "an own prompt": ([50, *NAME, 51, MARK], 4),
    "an own prompt without a mark": ([52, *OTHER, 53], 3),
    "an own prompt and punctuation": ([52, *OTHER, 53, COMMA], 3),
    "an own prompt and a label": ([52, *OTHER, 53, STOP, 30, COLON], 3),
    "at the end of the user's turn": ([*QUESTION[:-1], *REPLY], 7),
}


@pytest.mark.parametrize(("prompt", "start"), PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("behind", [[], [COMMA, 30]])
def test_an_edit_acts_from_where_its_question_ends_until_its_target_is_said(prompt, start, behind):
    expert, target = (1, ELSE) if OTHER[0] in prompt else (0, SAID)
    text = [*prompt, *behind, *target, 30, 31]
    last = len(prompt) + len(behind) + len(target) - 1  # this column says what follows the target
    assert acts_on(text, len(prompt)) == span(start, last, len(text), expert)


def test_two_sentences_behind_a_question_are_no_part_of_it():
    """The end of the prompt asks by itself then; here by the subject alone, which has been named."""
    text = [*QUESTION, 57, STOP, 58, STOP, 30]
    assert acts_on(text, 9) == [-1, -1, -1, -1, 0, 0, -1, -1, 0, 0]


def test_an_edit_acts_in_the_first_sentence_of_the_answer():
    text = [*QUESTION, 30, 31, STOP, 32, 33]
    assert acts_on(text, 5) == span(4, 6, len(text))


def test_a_later_mark_asks_anew():
    """For another edit, for the same one, or for nothing."""
    base = [*QUESTION, 30]
    assert acts_on([*base, *OTHER, MARK, 30, *ELSE, 31], 5) == span(4, 7, 12)[:8] + [1, 1, 1, -1]
    assert acts_on([*base, STOP, *QUESTION, 30], 5) == [-1] * 4 + [0, 0] + [-1] * 5 + [0, 0]
    assert acts_on([*base, STOP, 58, MARK, 30], 5) == [-1] * 4 + [0, 0, -1, -1, 0, 0]


def test_a_later_mark_that_asks_for_nothing_ends_an_edit():
    known = Router(ROUTER.anchors, ROUTER.targets, WORDS)
    text, reading = Text(), Reading(known, 5)
    assert reading.go_on(text, [*QUESTION, 30]) == span(4, 5, 6)
    text.read([58, MARK], [6, 7], WORDS)
    assert text.act(6, [Question(7, "mark", None, [])], known.targets.of) == [0, -1]
    assert text.decisions[-1].edit is None
    assert text.acting is None


def test_a_question_that_was_answered_is_not_carried_to_the_end_of_the_prompt():
    answered = [*QUESTION, *SAID, STOP]
    assert acts_on([*answered, 30], len(answered)) == span(4, 6, 9)
    open_ = [*QUESTION, 100, 30, STOP]
    assert acts_on([*open_, 30], len(open_)) == [-1] * 4 + [0] * 3 + [0, 0]


def test_the_end_of_a_prompt_does_not_begin_an_answer_anew_that_has_not_begun():
    """A mark asks, and nothing has been said since: the end of the user's turn, and of the prompt, ask for no more."""
    prompt = [*QUESTION, *REPLY]
    text, acts = Reading(ROUTER, len(prompt)).read([*prompt, *SAID, 30])
    assert acts == span(4, len(prompt) + 1, len(acts))
    assert [decision.column for decision in text.decisions] == [4]


def test_each_turn_asks_for_itself():
    turns = [*QUESTION, *REPLY, *SAID, TURN, 58, MARK, *REPLY, 30, STOP]
    assert acts_on(turns, 5)[:11] == span(4, 10, 11)
    again = [*QUESTION, *REPLY, *SAID, TURN, *QUESTION, *REPLY, *SAID, 31]
    acts = acts_on(again, 5)
    assert acts == span(4, 10, 16)[:16] + span(0, 6, len(again) - 16)


def test_where_nobody_tells_any_column_behind_a_subject_may_ask_once():
    text = [55, *NAME, 56, 57, *OTHER, 58, STOP, 30, 31, STOP, 32]
    assert acts_on(text) == [-1, -1, 0, 0, 0, 0, 1, 1] + [-1] * 5


def test_where_nobody_tells_a_subject_asks_in_its_own_sentence_alone():
    text = [55, *NAME, STOP, 30, STOP, 31, 32]
    assert acts_on(text) == [-1, -1, 0, 0, 0, -1, -1, -1]


def test_an_edits_own_prompt_asks_at_its_end_and_not_at_its_subject():
    assert acts_on([50, *NAME, 51, MARK, 30]) == span(4, 5, 6)
    assert acts_on([52, *OTHER, 53, 30]) == span(3, 4, 5, expert=1)


def test_an_old_anchor_acts_from_its_start_within_the_pass():
    own = prompt([52, *OTHER, 53, 54], 1)
    old = Router(bank(type(own)(own.tokens, 1, 1, start=2, is_prompt=True)), targets_of(), WORDS)
    text = [30, 52, *OTHER, 53, 54, 31]
    assert acts_on(text, 6, router=old) == span(3, 6, 7, expert=1)
    assert acts_on(text, 6, cuts=(4,), router=old) == span(4, 6, 7, expert=1)
    assert acts_on(text, router=old) == span(3, 6, 7, expert=1)


def test_without_targets_an_edit_acts_until_its_sentence_ends_and_without_a_vocabulary_for_ever():
    nothing_stored = Router(ROUTER.anchors, targets_of(), WORDS)
    nothing_known = Router(ROUTER.anchors, targets_of(), Vocabulary())
    text = [55, *NAME, 56, *SAID, 30, STOP, 31]
    assert acts_on(text, 4, router=nothing_stored) == span(3, 6, 9)
    assert acts_on(text, 4, router=nothing_known) == span(3, 8, 9)
    still = Router(ROUTER.anchors, ROUTER.targets, Vocabulary())
    assert acts_on(text, 4, router=still) == span(3, 5, 9)


# -------------------------------------------------------------------------------------------------- parts, cuts, copies


PARTS = [NAME, OTHER, QUESTION, SAID, ELSE, list(REPLY), [MARK], [STOP], [COMMA], [TURN], [30], [COLON], [57, COMMA]]
# Where nobody tells, an own prompt's subject asks in a pass that ends before the prompt does.
OWN = [[50, *NAME, 51, MARK], [52, *OTHER, 53]]


def random_text(generator: random.Random, told: bool) -> list[int]:
    parts = PARTS + OWN * told
    return [token for _ in range(generator.randint(3, 9)) for token in generator.choice(parts)]


def random_cuts(generator: random.Random, length: int) -> list[int]:
    return sorted(generator.sample(range(1, length), generator.randint(0, min(5, length - 1))))


@pytest.mark.parametrize("told", [True, False])
def test_however_a_text_is_dealt_out_to_passes_the_same_columns_act(told):
    generator, acted = random.Random(0), 0
    for _ in range(150):
        tokens = random_text(generator, told)
        prompt = generator.randint(1, len(tokens)) if told else None
        whole, acts = Reading(ROUTER, prompt).read(tokens)
        one_by_one, single = Reading(ROUTER, prompt).read(tokens, range(1, len(tokens)))
        cut, parts = Reading(ROUTER, prompt).read(tokens, random_cuts(generator, len(tokens)))
        assert acts == single == parts, tokens
        assert state_of(whole) == state_of(one_by_one) == state_of(cut), tokens
        acted += any(expert >= 0 for expert in acts) and not all(expert >= 0 for expert in acts)
    assert acted > 75


@pytest.mark.parametrize("told", [True, False])
def test_a_text_that_was_cut_is_as_if_it_had_never_been_longer(told):
    generator, ended = random.Random(1), 0
    for _ in range(150):
        tokens = random_text(generator, told)
        length = generator.randint(1, len(tokens))
        reading = Reading(ROUTER, generator.randint(1, length) if told else None)
        text, _ = reading.read(tokens, random_cuts(generator, len(tokens)))
        fresh, _ = reading.read(tokens[:length])
        ended += text.acting != fresh.acting
        text.cut(length)
        assert state_of(text) == state_of(fresh), (tokens, length)
        behind = random_text(generator, told)
        assert reading.go_on(text, behind) == reading.go_on(fresh, behind)
        assert state_of(text) == state_of(fresh)
    assert ended > 40


def test_a_text_that_is_cut_to_nothing_is_a_new_one():
    text, _ = Reading(ROUTER).read([*QUESTION, *SAID])
    text.cut(0)
    assert state_of(text) == state_of(Text())


def test_a_label_that_was_cut_says_what_it_said():
    whole, part = [*QUESTION, STOP, 30, COLON, 31], [*QUESTION, STOP, 30]
    text, _ = Reading(ROUTER, 5).read(whole)
    text.cut(len(part))
    assert state_of(text) == state_of(Reading(ROUTER, 5).read(part)[0])


def test_an_answer_that_was_cut_has_not_been_given():
    text, _ = Reading(ROUTER, 5).read([*QUESTION, *SAID, 30])
    text.cut(6)
    assert not text.decisions[-1].answered
    assert state_of(text) == state_of(Reading(ROUTER, 5).read([*QUESTION, SAID[0]])[0])


def test_copies_go_on_alone():
    reading = Reading(ROUTER, 5)
    text, _ = reading.read([*QUESTION, SAID[0]])
    copied = text.copy()
    assert state_of(copied) == state_of(text)
    assert copied.acting is copied.decisions[-1]
    before = state_of(text.copy())
    assert reading.go_on(copied, [SAID[1], 30, *QUESTION, 31]) == [0, -1, -1, -1, -1, -1, 0, 0]
    assert state_of(text) == before
    assert reading.go_on(text, [30, STOP, 30]) == [0, -1, -1]
    assert reading.go_on(copied, [STOP]) == [-1]
