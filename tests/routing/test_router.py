"""What a text may ask for, at which of its columns, and how surely it does."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from anchored import bank, prompt, subject
from lemoe_hf.routing.anchors import Anchor
from lemoe_hf.routing.relations import Relations, features_of, words_of
from lemoe_hf.routing.router import Asking, Router, mean_of_words, score, waiting, words_beside
from lemoe_hf.routing.targets import Targets
from lemoe_hf.routing.text import Text
from worded import vocabulary_of


MARK, STOP, CONTINUING = 20, 21, 22
WORDS = vocabulary_of((MARK,), (STOP,), continuing=(CONTINUING,))
NAME, OTHER = [60, 61], [70, 71]
ANCHORS = [prompt([50, *NAME, 51], 0), subject(NAME, 0), prompt([52, *OTHER, 53], 1), subject(OTHER, 1)]


def router_of(*anchors: Anchor, relations=None, **thresholds) -> Router:
    return Router(bank(*(anchors or ANCHORS)), Targets(), WORDS, relations, **thresholds)


def asking_of(router: Router, tokens: list[int], first: int = 0, ends=(), prompt: int | None = None) -> Asking:
    text = Text(ends=set(ends), prompt=prompt)
    text.read(tokens, range(len(tokens)), WORDS)
    asking = Asking(text, first)
    router.questions([asking])
    return asking


def asked(tokens: list[int], router: Router | None = None, **options) -> dict[int, tuple[str, int | None, list[int]]]:
    """By column: how it is known that a question ends, the edit whose own prompt does, and those of subjects."""
    questions = asking_of(router or router_of(), tokens, **options).questions
    return {
        each.column: (each.kind, each.own and each.own.edit, [option.edit for option in each.options])
        for each in questions
    }


# ------------------------------------------------------------------------------------------------------------- questions


def test_where_generate_tells_marks_and_ends_ask():
    assert asked([30, *NAME, 31, MARK, 32, 33], ends=(6,), prompt=7) == {4: ("mark", None, [0]), 6: ("end", None, [0])}
    assert asked([30, *NAME, 31, MARK, 32, 33], first=5, ends=(6,), prompt=7) == {6: ("end", None, [0])}


def test_where_nobody_tells_every_column_behind_a_subject_does():
    assert asked([30, *NAME, 31, MARK, *OTHER, 33]) == {
        2: ("guess", None, [0]),
        3: ("guess", None, [0]),
        4: ("mark", None, [0]),
        6: ("guess", None, [1]),
        7: ("guess", None, [1]),
    }


def test_in_an_own_prompt_the_last_column_does():
    """
    Where nobody tells; a subject within it does not ask, and what stands behind is a question of its own. Where the end of
    the prompt is told, that asks, and the own prompt if nothing has been said since.
    """
    assert asked([50, *NAME, 51]) == {3: ("guess", 0, [])}
    assert asked([50, *NAME, 51, 30]) == {3: ("guess", 0, []), 4: ("guess", None, [0])}
    assert asked([50, *NAME, 51, MARK, STOP], ends=(5,), prompt=6) == {4: ("mark", None, [0]), 5: ("end", 0, [])}
    assert asked([50, *NAME, 51, MARK, 30], ends=(5,), prompt=6)[5] == ("end", None, [0])


def test_an_own_prompt_within_a_longer_one_asks_nothing():
    """Whichever was edited first; but for a mark, where a question is known to end."""
    within = prompt([*NAME, 51], 2)
    router = router_of(*ANCHORS, within)
    assert asked([50, *NAME, 51], router) == {3: ("guess", 0, [])}
    longer = router_of(within, prompt([50, *NAME, 51, 30], 3))
    assert asked([50, *NAME, 51, 30], longer, ends=(4,), prompt=5) == {4: ("end", 3, [])}
    assert asked([40, *NAME, 51, 30], longer) == {3: ("guess", 2, [])}
    assert asked([40, *NAME, 51, 30], longer, ends=(4,), prompt=5) == {4: ("end", None, [])}
    assert asked([50, *NAME, 51, MARK], router_of(*ANCHORS, prompt([50, *NAME, 51, MARK, 30], 3)))[4][0] == "mark"
    assert asked([50, *NAME, 51, MARK, 30], router_of(*ANCHORS, prompt([50, *NAME, 51, MARK, 30], 3))) == {
        4: ("mark", None, [0]),
        5: ("guess", 3, []),
    }


def test_an_own_prompt_in_an_answer_asks_nothing():
    assert asked([30, 31, 50, *NAME, 51], ends=(1,), prompt=2) == {1: ("end", None, [])}
    assert asked([30, 31, 50, *NAME, 51], first=2, ends=(1,), prompt=2) == {}
    assert asked([30, 31, 50, *NAME, 51, MARK], first=2, ends=(1,), prompt=2) == {6: ("mark", None, [0])}


def test_a_decoded_mark_asks_and_other_decoded_tokens_do_not():
    assert asked([30, *NAME, 31, 32], first=4, ends=(3,), prompt=4) == {}
    assert asked([30, *NAME, 31, MARK], first=4, ends=(3,), prompt=4) == {4: ("mark", None, [0])}


def test_a_mark_asks_for_nothing_where_nothing_was_named():
    assert asked([30, MARK, *NAME], ends=(3,), prompt=4) == {1: ("mark", None, []), 3: ("end", None, [0])}
    assert asked([30, MARK], router=router_of(subject([99], 0))) == {1: ("mark", None, [])}


def test_a_subject_that_is_named_in_a_later_sentence_takes_over():
    """Within a sentence, what is asked decides between all that were named in it."""
    assert asked([*NAME, STOP, *OTHER, MARK], ends=(5,), prompt=6)[5] == ("mark", None, [1])
    assert asked([*NAME, 30, *OTHER, MARK], ends=(5,), prompt=6)[5] == ("mark", None, [0, 1])
    assert asked([*NAME, STOP, 30, MARK], ends=(4,), prompt=5)[4] == ("mark", None, [0])


# Capitalised words, and what stands for a name.
CITY, WHO, IT = 80, 81, 82
TURN = 9
CASED = vocabulary_of((MARK,), (STOP,), capitals=(CITY, WHO), pronouns=(IT,))
ABOUT = {
    "of no other": ([WHO, 31], [0]),
    "of another": ([WHO, 31, CITY], []),
    "of another, and more": ([31, CITY, 32], []),
    "of it, and another": ([WHO, 31, IT, CITY], [0]),
    "of another, then of it": ([31, CITY, IT], [0]),
    "beginning with it": ([IT, 31, CITY], [0]),
    "a capital at the beginning alone": ([CITY, 31], [0]),
    "a capital of the edit's own prompt": ([WHO, 31, 90], [0]),
    "both": ([WHO, 90, CITY], []),
}


@pytest.mark.parametrize(("question", "options"), ABOUT.values(), ids=ABOUT)
@pytest.mark.parametrize("kind", ["mark", "end"])
def test_a_question_that_names_another_is_not_about_the_subject_of_an_earlier_sentence(question, options, kind):
    """As "Who is the mayor of Chicago?" where New York City has been named before."""
    cased = vocabulary_of((MARK,), (STOP,), capitals=(CITY, WHO, 90), pronouns=(IT,))
    router = Router(bank(prompt([50, *NAME, 90, 51], 0), subject(NAME, 0)), Targets(), cased)
    tokens = [30, *NAME, 31, STOP, *question, *([MARK, 5] if kind == "mark" else [STOP, 5])]
    text = Text(ends={len(tokens) - 1}, prompt=len(tokens))
    text.read(tokens, range(len(tokens)), cased)
    asking = Asking(text, 0)
    router.questions([asking])
    found = {each.kind: [option.edit for option in each.options] for each in asking.questions}
    assert found[kind] == options


def test_a_question_about_another_in_the_sentence_that_names_a_subject_may_be_about_that():
    """What it asks decides."""
    router = Router(bank(*ANCHORS), Targets(), CASED)
    for tokens in [WHO, *NAME, 31, CITY, MARK], [WHO, 31, CITY, 32, *NAME, MARK]:
        text = Text(prompt=9)
        text.read(tokens, range(len(tokens)), CASED)
        asking = Asking(text, 0)
        router.questions([asking])
        (question,) = asking.questions
        assert [option.edit for option in question.options] == [0]


def options_at_the_mark(tokens: list[int], anchors: list[Anchor], vocabulary) -> list[int]:
    text = Text(prompt=len(tokens) + 1)
    text.read(tokens, range(len(tokens)), vocabulary)
    asking = Asking(text, 0)
    Router(bank(*anchors), Targets(), vocabulary).questions([asking])
    return [option.edit for option in asking.questions[-1].options]


def test_another_name_may_begin_with_the_same_token():
    """As "Velsing Minor" and "Vantessa Minor" both begin with " V"."""
    essa, sing = 91, 92
    cased = vocabulary_of((MARK,), (STOP,), capitals=(CITY, WHO), continuing=(essa, sing), pronouns=(IT,))
    name = [CITY, essa]
    anchors = [prompt([50, *name, 51], 0), subject(name, 0)]
    before = [50, *name, MARK]
    assert options_at_the_mark([*before, WHO, 31, CITY, sing, MARK], anchors, cased) == []
    assert options_at_the_mark([*before, WHO, 31, CITY, MARK], anchors, cased) == [0]
    assert options_at_the_mark([*before, WHO, 31, IT, MARK], anchors, cased) == [0]


def test_a_question_without_name_or_pronoun_is_not_about_a_subject_named_long_before():
    """As "Can penguins fly?" at the end of a document; a sentence or a turn after the subject it may be a follow-up."""
    named, said = [30, *NAME, STOP], [31, STOP]
    for between, without, with_pronoun in [(0, [0], [0]), (1, [0], [0]), (2, [], [0]), (5, [], [0])]:
        before = named + said * between
        assert options_at_the_mark([*before, 32, 33, MARK], ANCHORS, CASED) == without
        assert options_at_the_mark([*before, 32, IT, MARK], ANCHORS, CASED) == with_pronoun
        assert options_at_the_mark([*before, 32, *NAME, MARK], ANCHORS, CASED) == [0]


def test_a_subject_of_the_turn_before_may_be_asked_about_after_a_long_answer():
    """As "And the currency?"; not one of a turn before that."""
    chat = vocabulary_of((MARK,), (STOP,), pronouns=(IT,), special=(TURN,), reply=(TURN,))
    turn, answer = [*NAME, 31, MARK, TURN], [32, STOP] * 4
    assert options_at_the_mark([*turn, *answer, 33, 34, MARK], ANCHORS, chat) == [0]
    assert options_at_the_mark([*turn, *answer, 35, MARK, TURN, *answer, 33, 34, MARK], ANCHORS, chat) == []


def test_a_vocabulary_that_tells_no_pronouns_does_not_tell_what_is_named_long_before():
    """That of an adapter from before there were any: then every question may be a follow-up."""
    assert options_at_the_mark([*NAME, STOP, *([31, STOP] * 5), 32, MARK], ANCHORS, WORDS) == [0]


def test_of_rivals_each_has_capitals_of_its_own():
    """A question about another may be about a rival, whose prompt names it."""
    rival = [prompt([*NAME, 51, CITY], 2), subject(NAME, 2)]
    router = Router(bank(*ANCHORS, *rival), Targets(), CASED)
    tokens = [*NAME, 31, STOP, WHO, 31, CITY, MARK]
    text = Text(prompt=9)
    text.read(tokens, range(len(tokens)), CASED)
    asking = Asking(text, 0)
    router.questions([asking])
    assert [[option.edit for option in each.options] for each in asking.questions] == [[2]]


def test_rivals_are_options_beside_the_best_edit_of_their_subject():
    rival = [prompt([*NAME, 80, 81], 2), subject(NAME, 2)]
    assert asked([*NAME, 80, 30], router_of(*ANCHORS, *rival), ends=(3,), prompt=4)[3][2] == [2, 0]
    assert asked([*NAME, 30, 51], router_of(*ANCHORS, *rival), ends=(3,), prompt=4)[3][2] == [0, 2]


def test_a_longer_name_is_another():
    assert asked([*NAME, CONTINUING, 30], ends=(3,), prompt=4)[3][2] == []


def test_a_text_of_which_a_question_may_begin_is_searched_and_no_other():
    router = router_of()
    text = Text(prompt=2)
    text.read([*NAME, 30], range(3), WORDS)
    router.questions([Asking(text, 2)])
    assert (text.searched, text.found) == (0, [])
    text.read([MARK], [3], WORDS)
    router.questions([Asking(text, 3)])
    assert text.searched == 4
    assert [match.edit for match in text.found] == [0]


# --------------------------------------------------------------------------------------------------------------- scores


def unit(*values: float) -> torch.Tensor:
    return F.pad(torch.tensor(values), (0, Relations.num_directions - len(values)))


WIDTH = 4  # of hidden states and of embeddings: features are as many words and two layers


def relations_of(keys: dict[int, torch.Tensor], threshold: float = 2.0) -> Relations:
    generator = torch.Generator().manual_seed(0)
    relations = Relations(num_features=3 * WIDTH)
    relations.mean = torch.randn(3 * WIDTH, generator=generator)
    relations.directions = torch.randn(3 * WIDTH, Relations.num_directions, generator=generator).bfloat16()
    noise = torch.randn(40, Relations.num_directions, generator=generator)
    relations.cohort = F.normalize(noise, dim=-1).bfloat16()
    relations.thresholds.fill_(threshold)
    relations.add(list(keys), torch.stack(list(keys.values())))
    return relations


EMBEDDING = torch.randn(320, WIDTH, generator=torch.Generator().manual_seed(1))


def test_options_have_the_key_and_the_threshold_of_their_edit():
    relations = relations_of({1: unit(1.0), 2: unit(0.0, 1.0)})
    relations.threshold[0] = 5.0
    tokens = [*NAME, 30, *OTHER, MARK]
    (question,) = asking_of(router_of(relations=relations), tokens, ends=(5,), prompt=6).questions
    assert [(option.edit, option.expert, option.key, option.threshold) for option in question.options] == [
        (0, 0, -1, -torch.inf),
        (1, 1, 0, 5.0),
    ]
    by_hand = router_of(relations=relations, relation_threshold=7.0)
    (question,) = asking_of(by_hand, tokens, ends=(5,), prompt=6).questions
    assert [option.threshold for option in question.options] == [-torch.inf, 7.0]


def test_texts_wait_only_for_what_has_a_key():
    relations = relations_of({1: unit(1.0)})
    router = router_of(relations=relations)
    first = asking_of(router, [*NAME, MARK], ends=(2,), prompt=3)
    second = asking_of(router, [*OTHER, MARK, 52, *OTHER, 53], ends=(6,), prompt=7)
    assert [each.waits for each in (first, second)] == [False, True]
    assert [(text is second.text, question.column) for text, question in waiting([first, second])] == [(True, 2)]
    assert not asking_of(router_of(), [*OTHER, MARK], ends=(2,), prompt=3).waits


def test_a_score_is_of_the_words_of_the_sentence_and_the_hidden_states_where_it_ends():
    """Of each option by itself, whatever else is asked in the batch."""
    relations = relations_of({0: unit(1.0), 1: unit(0.6, 0.8)})
    router = router_of(relations=relations)
    askings = [
        asking_of(router, [30, *NAME, 31, *OTHER, MARK], ends=(6,), prompt=7),
        asking_of(router, [99, STOP, *OTHER, 32, MARK], ends=(5,), prompt=6),
    ]
    generator = torch.Generator().manual_seed(2)
    hidden = [torch.randn(2, WIDTH, generator=generator) for _ in range(2)]
    score(relations, askings, hidden, lambda ids: EMBEDDING[ids])
    spoken = {(0, 0): [30, 31, *OTHER, MARK], (0, 1): [30, *NAME, 31, MARK], (1, 1): [32, MARK]}
    for row, asking in enumerate(askings):
        (question,) = asking.questions
        for option, found in zip(question.options, question.scores, strict=True):
            words = words_of(EMBEDDING[torch.tensor(spoken[row, option.edit])]) - relations.mean[:WIDTH]
            states = features_of([each[row] for each in hidden]) - relations.mean[WIDTH:]
            features = torch.cat([words.mean(0), states])
            vector = F.normalize(features @ relations.directions.float(), dim=-1)
            key = relations.keys[option.edit].float()
            torch.testing.assert_close(torch.tensor(found), relations.score(key[None], vector[None])[0, 0])


def test_words_are_averaged_of_each_list_by_itself():
    relations = relations_of({0: unit(1.0)})
    spoken = [[30, 31, 30], [], [40]]
    found = mean_of_words(relations, spoken, torch.device("cpu"), lambda ids: EMBEDDING[ids])
    for words, mean in zip(spoken, found, strict=True):
        expected = torch.zeros(Relations.num_directions)
        if words:
            seen = words_of(EMBEDDING[torch.tensor(words)]) - relations.mean[:WIDTH]
            expected = seen.mean(0) @ relations.directions[:WIDTH].float()
        torch.testing.assert_close(mean, expected)
    nothing = mean_of_words(relations, [[], []], torch.device("cpu"), lambda ids: EMBEDDING[ids])
    assert torch.equal(nothing, torch.zeros(2, Relations.num_directions))


# A name of two tokens in columns 2 and 3; a stop in column 5.
SENTENCES = {
    "up to the column": (4, [30, 31, 32]),
    "without the stop that ends it": (5, [30, 31, 32]),
    "of a later sentence alone": (7, [33, 34]),
    "the name alone": (3, [30, 31]),
    "up to a mark, which is a word": (8, [33, 34, MARK]),
    "up to what was said last, which is no punctuation": (9, [33, 34]),
}


@pytest.mark.parametrize(("column", "counted"), SENTENCES.values(), ids=SENTENCES)
def test_words_are_those_of_the_sentence_without_the_name(column, counted):
    text = Text()
    text.read([30, 31, *NAME, 32, STOP, 33, 34, MARK, 5], range(10), WORDS)
    assert words_beside(text, column, (2, 3)) == counted


def test_a_stop_within_a_name_ends_no_sentence():
    """As in J. Doe; and a name that is the whole sentence leaves nothing."""
    text = Text()
    text.read([30, STOP, 31, STOP, 32, 33], range(6), WORDS)
    assert words_beside(text, 4, (2, 3)) == [32]
    assert words_beside(text, 5, (2, 3)) == [32, 33]
    assert words_beside(text, 2, (2, 2)) == []
    assert words_beside(text, 5, (3, 4)) == [31, 33]


def test_embeddings_of_no_known_token_are_no_words():
    text = Text()
    text.read([30, -2, *NAME, 31], range(5), WORDS)
    assert words_beside(text, 4, (2, 3)) == [30, 31]
