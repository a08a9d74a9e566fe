"""One text, token by token: where its questions end, and on which columns which edits act."""

from __future__ import annotations

import random

import pytest

from anchored import bank, prompt, subject
from lemoe_hf.routing.anchors import Match
from lemoe_hf.routing.router import Asking, Router
from lemoe_hf.routing.text import ENDLESS, NEAR, Option, Question, Text
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


def acts_on(tokens, prompt: int | None = None, cuts=None, router: Router = ROUTER) -> list[int]:
    """By default in passes as of a cache: a prompt in one, and what is generated token by token; or all in one."""
    if cuts is None:
        cuts = range(prompt, len(tokens)) if prompt is not None else ()
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
    "at a mark": QUESTION,
    "at a mark, and on to the end": [*QUESTION, COMMA, STOP],
    "one sentence may follow": [*QUESTION, 57, 58, STOP],
    "at the end": [55, *NAME, 56],
    "an own prompt": [50, *NAME, 51, MARK],
    "an own prompt without a mark": [52, *OTHER, 53],
    "an own prompt and punctuation": [52, *OTHER, 53, COMMA],
    "an own prompt and a label": [52, *OTHER, 53, STOP, 30, COLON],
    "a mark and a label": [*QUESTION, STOP, 30, COLON],
    "at the end of the user's turn": [*QUESTION[:-1], *REPLY],
    "at a mark in the user's turn": [*QUESTION, *REPLY],
}


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("behind", [[], [COMMA, 30]])
def test_an_edit_acts_from_where_its_prompt_ends_until_its_target_is_said(prompt, behind):
    """Wherever in the prompt its question ends: nothing acts before what is generated."""
    expert, target = (1, ELSE) if OTHER[0] in prompt else (0, SAID)
    text = [*prompt, *behind, *target, 30, 31]
    last = len(prompt) + len(behind) + len(target) - 1  # this column says what follows the target
    assert acts_on(text, len(prompt)) == span(len(prompt) - 1, last, len(text), expert)


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_an_edit_that_answers_acts_on_no_column_within_a_prompt_whose_end_is_told(prompt):
    text, acts = Reading(ROUTER, len(prompt)).read(prompt)
    assert acts == span(len(prompt) - 1, len(prompt) - 1, len(prompt), 1 if OTHER[0] in prompt else 0)
    assert text.acted == len(prompt) - 1


def test_a_question_within_a_prompt_is_recorded_and_no_more():
    """Until the prompt's end has come, in whichever pass."""
    reading, text = Reading(ROUTER, 7), Text()
    assert reading.go_on(text, [*QUESTION, 57]) == [-1] * 6
    assert [(each.column, each.kind, each.edit) for each in text.decisions] == [(4, "mark", 0)]
    assert (text.acting, text.answer, text.acted) == (None, None, ENDLESS)
    assert reading.go_on(text, [STOP]) == [0]
    assert [(each.column, each.kind, each.edit) for each in text.decisions] == [(4, "mark", 0), (6, "end", 0)]
    assert text.acting is text.decisions[-1]
    assert text.acted == 6


def test_two_sentences_behind_a_question_are_no_part_of_it():
    """The end of the prompt asks by itself then, and so it does where another subject has been named since."""
    asked = [55, *NAME, 56, MARK]
    for between, expert in ([57, STOP], 0), ([57, *OTHER, STOP], 1), ([57, *OTHER, STOP, 58, STOP], 1):
        prompt = [*asked, *between]
        text = [*prompt, 30]
        assert acts_on(text, len(prompt)) == span(len(prompt) - 1, len(prompt), len(text), expert)


def test_a_mark_that_asked_for_nothing_keeps_no_later_subject_from_being_asked_for():
    """ "Ready? The capital of Zembla is" """
    for text in ([58, MARK, 57, *NAME, STOP], [58, MARK, 57, STOP, 57, *NAME, STOP]):
        assert acts_on([*text, 30], len(text)) == span(len(text) - 1, len(text), len(text) + 1)


def test_where_labels_tell_edits_act_behind_the_end_of_every_prompt():
    """And `generate`, which tells of the last one alone, leaves the earlier to the base model."""
    tokens = [55, *NAME, 56, *SAID, 30, STOP, 52, *OTHER, 53, *ELSE, 31]
    for answers_all, acts in (True, span(3, 5, 14)[:11] + [1, 1, -1]), (False, [-1] * 11 + [1, 1, -1]):
        text = Text(ends={3, 11}, prompt=12, answers_all=answers_all)
        text.read(tokens, range(len(tokens)), WORDS)
        asking = Asking(text, 0)
        ROUTER.questions([asking])
        assert text.act(0, asking.questions, ROUTER.targets.of) == acts


# Behind a question mark where nobody tells, and from which column on its edit acts.
LEADS = {
    "the answer": ([100, 101], 4),
    "a comma": ([COMMA, 100], 5),
    "a stop and a comma": ([STOP, COMMA, 100], 6),
    "the turn of the model": ([*REPLY, 100], 8),
    "a label": ([STOP, 40, COLON, 100], 7),
    "a label that is none": ([STOP, 40, 41, 42, 43, COLON, 100], 5),
    "a target that begins with a comma": ([STOP, COMMA, 107], 5),
    "nothing": ([], 4),
    "nothing that says anything": ([COMMA, COMMA], 6),
}


@pytest.mark.parametrize(("behind", "start"), LEADS.values(), ids=LEADS)
def test_where_nobody_tells_an_edit_acts_from_where_its_answer_begins(behind, start):
    """Behind a question mark: what says nothing in between is passed over. The subject itself has asked before."""
    targets = targets_of((0, SAID), (1, ELSE)) if 107 not in behind else targets_of((0, [COMMA, 107]), (1, ELSE))
    text, acts = Reading(Router(ROUTER.anchors, targets, WORDS)).read([*QUESTION, *behind])
    assert (text.decisions[1].column, text.decisions[1].kind, text.decisions[1].start) == (4, "mark", start)
    assert acts[: start + 1] == [-1, -1, 0, 0] + [-1] * (start - 4) + [0]


def test_an_answer_begins_where_the_text_has_come_to():
    """In a pass that ends with the mark nothing can be passed over."""
    tokens = [*QUESTION, COMMA, COMMA, *SAID, 30]
    assert acts_on(tokens) == [-1, -1, 0, 0, -1, -1, 0, 0, 0, -1]
    assert acts_on(tokens, cuts=(6,)) == [-1, -1, 0, 0, -1, 0, 0, 0, 0, -1]
    assert acts_on(tokens, cuts=(5,)) == [-1, -1, 0, 0, 0, 0, 0, 0, 0, -1]


@pytest.mark.parametrize("prompt", [3, 5])
def test_a_mark_that_ends_a_prompt_or_is_generated_acts_alike_with_and_without_a_cache(prompt):
    """Without one the whole text comes again with every token; a draft of what is generated comes in one pass, too."""
    tokens = [*QUESTION, COMMA, *SAID, 30]
    for cuts in (), (prompt,), (5,):
        assert acts_on(tokens, prompt, cuts)[4:] == acts_on(tokens, prompt)[4:] == [0, 0, 0, 0, -1]


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


ANSWERED = {
    "said, and the sentence ended": ([*SAID, STOP], False),
    "said at the end": (SAID, False),
    "said behind other words": ([30, *SAID, 31, STOP], False),
    "said in part": ([100, 30, STOP], True),
    "said apart": ([100, 30, 101, STOP], True),
    "another edit's": ([*ELSE, STOP], True),
}


@pytest.mark.parametrize(("behind", "is_open"), ANSWERED.values(), ids=ANSWERED)
def test_a_question_that_was_answered_is_not_carried_to_the_end_of_the_prompt(behind, is_open):
    prompt = [*QUESTION, *behind]
    length = len(prompt) + 1
    expected = span(length - 2, length - 1, length) if is_open else [-1] * length
    assert acts_on([*prompt, 30], len(prompt)) == expected


@pytest.mark.parametrize("target", [[30], [30, 31]])
def test_what_has_been_said_may_be_any_spelling_of_the_target(target):
    router = Router(ROUTER.anchors, targets_of((0, SAID), (0, target), (1, ELSE)), WORDS)
    for said, start in (target, None), ([32, 31], 7):
        prompt = [*QUESTION, *said, STOP]
        acts = acts_on([*prompt, 41], len(prompt), router=router)
        assert acts == ([-1] * len(acts) if start is None else span(start, len(acts) - 1, len(acts)))


def test_the_end_of_a_prompt_does_not_begin_an_answer_anew_that_has_not_begun():
    """
    Where nobody tells, a mark asks, and nothing has been said since: the end of the user's turn asks for no more. Nor does
    the end of a prompt that labels tell, behind that of the user's turn.
    """
    prompt = [*QUESTION, *REPLY]
    text, acts = Reading(ROUTER).read([*prompt, *SAID, 30])
    assert acts == [-1, -1, 0, 0, -1, -1, -1, -1, 0, 0, 0, -1]
    assert [decision.column for decision in text.decisions] == [2, 4]
    labelled = Text(ends={9}, prompt=10, answers_all=True)
    labelled.read([*prompt, COMMA, *SAID, 30], range(13), WORDS)
    asking = Asking(labelled, 0)
    ROUTER.questions([asking])
    assert labelled.act(0, asking.questions, ROUTER.targets.of) == span(8, 11, 13)
    assert [(each.column, each.kind) for each in labelled.decisions] == [(4, "mark"), (8, "end")]


def test_each_turn_asks_for_itself():
    """Where nobody tells, every turn is answered; where `generate` does, the last one is. Here by the subject alone."""
    turns = [*QUESTION, *REPLY, *SAID, TURN, 58, MARK, *REPLY, 30, STOP]
    first, second = [-1, -1, 0, 0, -1, -1, -1, -1, 0, 0, 0], [-1] * 6 + [0, 0, -1]
    assert acts_on(turns) == first + second
    assert acts_on(turns, len(turns) - 2) == [-1] * len(first) + second
    again = [*QUESTION, *REPLY, *SAID, TURN, *QUESTION, *REPLY, *SAID, 31]
    second = [-1, -1, -1, 0, 0, -1, -1, -1, -1, 0, 0, 0, -1]
    assert acts_on(again) == first + second
    assert acts_on(again, len(again) - 3) == [-1] * len(first) + [-1] * 9 + second[9:]


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


def decided(text: Text) -> dict:
    """All that a text knows, but for where edits began to act, which passes that have gone by have made so."""
    of_text = state_of(text.copy())
    for decision in of_text["decisions"]:
        decision.start = 0
    del of_text["acted"]
    return of_text


def first_of(acts: list[int]) -> int:
    return next((column for column, expert in enumerate(acts) if expert >= 0), ENDLESS)


def passed_over(text: Text, single: list[int], cuts) -> list[int]:
    """
    What acts where nobody tells, in passes that end at the cuts: what does token by token, but for what says nothing behind
    a question mark in the same pass.
    """
    acts = list(single)
    behind = [decision.column for decision in text.decisions[1:]] + [len(text)]
    for decision, following in zip(text.decisions, behind, strict=False):
        until = min((cut for cut in cuts if cut > decision.column), default=len(text))
        known, column = read(text.ids[:until]), decision.column
        begins = {target[0] for target in decision.targets}
        while decision.kind == "mark" and column + 1 < until and column < following:
            if known.content[column + 1] or text.ids[column + 1] in begins:
                break
            acts[column] = -1
            column += 1
    return acts


@pytest.mark.parametrize("told", [True, False])
def test_however_a_text_is_dealt_out_to_passes_the_same_columns_act(told):
    """Where nobody tells, a pass passes over what it knows to say nothing in front of an answer."""
    generator, acted, skipped = random.Random(0), 0, 0
    for _ in range(150):
        tokens = random_text(generator, told)
        prompt = generator.randint(1, len(tokens)) if told else None
        one_by_one, single = Reading(ROUTER, prompt).read(tokens, range(1, len(tokens)))
        for cuts in [], random_cuts(generator, len(tokens)):
            text, acts = Reading(ROUTER, prompt).read(tokens, cuts)
            expected = single if told else passed_over(one_by_one, single, cuts)
            assert acts == expected, (tokens, prompt, cuts)
            assert decided(text) == decided(one_by_one), (tokens, prompt, cuts)
            assert text.acted == first_of(acts)
            skipped += acts != single
        acted += any(expert >= 0 for expert in single) and not all(expert >= 0 for expert in single)
    assert acted > 60
    assert told or skipped > 20


@pytest.mark.parametrize("told", [True, False])
def test_a_text_that_was_cut_is_as_if_it_had_never_been_longer(told):
    """But that what has acted has acted."""
    generator, ended = random.Random(1), 0
    for _ in range(150):
        tokens = random_text(generator, told)
        length = generator.randint(1, len(tokens))
        reading = Reading(ROUTER, generator.randint(1, len(tokens)) if told else None)
        text, acts = reading.read(tokens, random_cuts(generator, len(tokens)))
        fresh, _ = reading.read(tokens[:length])
        ended += text.acting != fresh.acting
        text.cut(length)
        text.prompt = fresh.prompt
        assert decided(text) == decided(fresh), (tokens, length, reading.prompt)
        assert text.acted == first_of(acts[:length])
        behind = random_text(generator, told)
        assert reading.go_on(text, behind) == reading.go_on(fresh, behind), (tokens, length, behind)
        assert decided(text) == decided(fresh)
    assert ended > 40


def test_an_answer_that_was_passed_over_to_begins_where_the_text_was_cut():
    """What is said next, in place of what has been cut, is the edit's."""
    reading = Reading(ROUTER)
    text, acts = reading.read([*QUESTION, COMMA, COMMA, COMMA])
    assert acts == [-1, -1, 0, 0, -1, -1, -1, 0]
    text.cut(5)
    assert reading.go_on(text, [30, *SAID, 31]) == [0, 0, 0, -1]


def test_a_text_that_is_cut_to_nothing_is_a_new_one():
    text, _ = Reading(ROUTER).read([*QUESTION, *SAID])
    text.cut(0)
    assert state_of(text) == state_of(Text())


def test_a_label_that_was_cut_says_what_it_said():
    whole, part = [*QUESTION, STOP, 30, COLON, 31], [*QUESTION, STOP, 30]
    text, _ = Reading(ROUTER, 5).read(whole)
    text.cut(len(part))
    assert text.content[6]
    assert decided(text) == decided(Reading(ROUTER, 5).read(part)[0])


def test_a_question_within_a_prompt_that_was_cut_acts_no_more_than_before():
    """As when a conversation goes on, and all is taken back behind the question."""
    text, acts = Reading(ROUTER, 6).read([*QUESTION, 57, 30])
    assert acts == span(5, 6, 7)
    text.cut(5)
    assert (text.acting, text.answer) == (None, None)
    assert Reading(ROUTER, 9).go_on(text, [57, 30, 31, STOP, 32]) == [-1, -1, -1, 0, 0]


def test_an_answer_that_was_cut_has_not_been_given():
    reading = Reading(ROUTER, 5)
    text, _ = reading.read([*QUESTION, *SAID, 30])
    assert text.acting is None
    text.cut(6)
    assert text.acting is text.decisions[-1]
    assert state_of(text) == state_of(reading.read([*QUESTION, SAID[0]])[0])


def test_where_an_edit_has_acted_is_told_of_what_is_left():
    text, acts = Reading(ROUTER, 5).read([*QUESTION, *SAID, 30])
    assert text.acted == first_of(acts) == 4
    for length, acted in (7, 4), (5, 4), (4, ENDLESS):
        text.cut(length)
        assert text.acted == acted
    assert Reading(ROUTER, 4).read([30, 31, 32, 33])[0].acted == ENDLESS


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
