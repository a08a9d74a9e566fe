"""Texts go where the rows of their cache go; and acting columns are the same, however tokens are dealt out to passes."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from gated import STOP, A, B, C, expected_logits, gated, generate, put_asked, watched
from lemoe_hf.generation import pad_left, pad_right
from lemoe_hf.routing.cached import CachedTexts, cache_in
from lemoe_hf.routing.context import take_back
from lemoe_hf.routing.text import Text
from tiny import PAD, logits, prompts_of
from worded import vocabulary_of


def cache_of(rows: int, columns: int = 4) -> DynamicCache:
    """Keys and values that tell their row and column."""
    cache = DynamicCache()
    states = torch.arange(rows * columns, dtype=torch.float).view(rows, 1, columns, 1)
    cache.update(states, states.clone(), 0)
    return cache


def kept_with(cache: DynamicCache, rows: int, columns: int = 4) -> CachedTexts:
    kept = CachedTexts(columns)
    for name in ("one", "other"):
        kept.texts[name] = [Text() for _ in range(rows)]
        for row, text in enumerate(kept.texts[name]):
            text.read([100 * row + column for column in range(columns)], range(columns), vocabulary_of())
    kept.attach(cache)
    return kept


def rows_of(kept: CachedTexts) -> list[int]:
    rows = [[text.ids[0] // 100 for text in texts] for texts in kept.texts.values()]
    assert rows[0] == rows[1]
    return rows[0]


def in_cache(cache: DynamicCache) -> list[int]:
    layer: DynamicLayer = cache.layers[0]
    return [int(row) // layer.keys.shape[2] for row in layer.keys[:, 0, 0, 0]]


# ----------------------------------------------------------------------------------------------------------- rows


def test_a_cache_is_found_under_any_name_and_in_any_output():
    cache = DynamicCache()
    for name in ("past_key_values", "cache_params"):
        assert cache_in({name: cache, "input_ids": None}) is cache
    assert cache_in({"past_key_values": None}) is None
    assert cache_in(torch.nn.Module()) is None


MOVES = {
    "reorder": (lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
    "repeat": (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
    "select": (lambda cache: cache.batch_select_indices(torch.tensor([2, 1])), [2, 1]),
    "select by a mask": (lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])), [0, 2]),
}


@pytest.mark.parametrize(("move", "rows"), MOVES.values(), ids=MOVES)
def test_texts_go_where_the_rows_go(move, rows):
    cache = cache_of(3)
    kept = kept_with(cache, 3)
    move(cache)
    assert rows_of(kept) == in_cache(cache) == rows
    move(cache_of(3))  # other caches know nothing of it
    assert rows_of(kept) == rows
    for texts in kept.texts.values():
        assert len({id(text) for text in texts}) == len(rows)


def test_rows_that_come_from_one_go_on_alone():
    cache = cache_of(1)
    kept = kept_with(cache, 1)
    cache.batch_repeat_interleave(2)
    first, second = kept.texts["one"]
    first.read([7], [4], vocabulary_of())
    assert (len(first), len(second)) == (5, 4)


def test_a_copied_cache_moves_its_own_texts():
    cache = cache_of(3)
    kept = kept_with(cache, 3)
    copied = copy.deepcopy(cache)
    copied.reorder_cache(torch.tensor([1, 1, 2]))
    assert rows_of(copied.lemoe_texts) == in_cache(copied) == [1, 1, 2]
    assert rows_of(kept) == in_cache(cache) == [0, 1, 2]
    cache.reorder_cache(torch.tensor([2, 1, 0]))
    assert rows_of(kept) == in_cache(cache) == [2, 1, 0]
    assert rows_of(copied.lemoe_texts) == in_cache(copied) == [1, 1, 2]


def test_texts_are_cut_by_the_column_of_the_batch():
    """Rows with padding in front lose fewer of their tokens."""
    kept = CachedTexts(5, {"one": [Text(), Text(), Text()]})
    for row, places in enumerate(([0, 1, 2, 3, 4], [2, 3, 4], [4])):
        kept.texts["one"][row].read([30 + place for place in places], places, vocabulary_of())
    kept.cut(3)
    assert [text.ids for text in kept.texts["one"]] == [[30, 31, 32], [32], []]
    assert kept.columns == 3


def test_the_length_of_a_cache_that_has_no_count_is_what_was_seen():
    assert CachedTexts(7).length_in(cache_of(1)) == 4
    assert CachedTexts(7).length_in(object()) == 7


# ---------------------------------------------------------------------------------------- the same columns in any form

SPAN = (2, 4)
PROMPTS = prompts_of(3)
SUBJECTS = [prompt[2:5] for prompt in PROMPTS]


LAST = 6  # column of the asker


def model_of(targets=None, **config):
    """An edit of A, one of B; every asker ends a question."""
    model = gated(marks=(A, B, C), **config)
    put_asked(model, [[*PROMPTS[0][:5], A], [*PROMPTS[1][:5], B]], SPAN, targets=targets)
    return model


def ask(subject: int, asker: int) -> list[int]:
    return [211, 212, *SUBJECTS[subject], 213, asker]


# Texts without any padding, and what acts on them if nobody tells where they end.
TEXTS = [
    ([*ask(0, A), 250, 251, STOP, 214, 215], [-1] * 6 + [0, 0, 0] + [-1] * 3),
    ([*ask(0, C), 250, STOP], [-1] * 9),
    ([210, *ask(1, B), 253], [-1] * 7 + [1, 1]),
    ([*ask(0, A), 250, *ask(1, B), 251, STOP, *ask(0, C), 214], [-1] * 6 + [0] * 8 + [1, 1] + [-1] * 9),
    ([220, 221], [-1, -1]),
]


def of_texts(rows: list[list[int]], mask: torch.Tensor) -> list[list[int]]:
    """What acts on the tokens of rows that are padded."""
    return [
        [expert for expert, is_text in zip(row, kept, strict=False) if is_text]
        for row, kept in zip(rows, mask.tolist(), strict=True)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_neither_padding_nor_other_rows_change_what_acts(side):
    model, texts = model_of(), [text for text, _ in TEXTS]
    if side == "left":
        batch = pad_left(texts, PAD, torch.device("cpu"))
        ids, mask = batch["input_ids"], batch["attention_mask"]
    else:
        ids, mask = pad_right(texts, PAD, torch.device("cpu"))
    with watched(model) as together:
        logits(model, ids, attention_mask=mask)
    assert of_texts(together, mask) == [acts for _, acts in TEXTS]
    assert not any(expert >= 0 for row in of_texts(together, 1 - mask) for expert in row)
    for text, acts in TEXTS:
        with watched(model) as alone:
            logits(model, text)
        assert alone == [acts]


def test_a_row_of_padding_holds_no_text():
    model, (text, acts) = model_of(), TEXTS[0]
    ids = torch.tensor([[PAD] * len(text), text])
    mask = (ids != PAD).long()
    with watched(model) as acting:
        logits(model, ids, attention_mask=mask)
    assert acting == [[-1] * len(text), acts]
    with watched(model) as acting:
        decoded = generate(model, ids, attention_mask=mask)
    assert acting[0] == [-1] * (len(text) + 5)
    assert torch.equal(decoded[1], generate(model, text)[0])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@torch.no_grad()
def test_chunks_on_a_cache_act_like_the_whole(size):
    model = model_of()
    for text, acts in TEXTS:
        cache = DynamicCache(config=model.config)
        with watched(model) as chunked:
            for first, last in pairwise([*range(0, len(text), size), len(text)]):
                model(input_ids=torch.tensor([text[first:last]]), past_key_values=cache)
        assert chunked == [acts]


@pytest.mark.parametrize("size", [1, 3, 7])
@torch.no_grad()
def test_a_cache_that_is_cropped_goes_on_as_if_nothing_had_been_behind(size):
    model = model_of()
    for text, acts in TEXTS:
        kept = max(len(text) - size, 1)
        for behind in ([215, A, 250], [251, STOP, 215], ask(1, B)):  # was said at first, and is taken back
            cache = DynamicCache(config=model.config)
            model(input_ids=torch.tensor([[*text[:kept], *behind]]), past_key_values=cache)
            cache.crop(-len(behind))
            assert [each.ids for each in cache.lemoe_texts.texts["default"]] == [[*text[:kept], *behind]]
            with watched(model) as cropped:
                model(input_ids=torch.tensor([text[kept:]]), past_key_values=cache)
            assert [each.ids for each in cache.lemoe_texts.texts["default"]] == [text]
            assert cropped[0][kept:] == acts[kept:]


ANSWERED = {
    "at a mark": ask(0, A),
    "at the end": [211, *SUBJECTS[0], 213, 214],
    "an own prompt": [*PROMPTS[0][:5], A],
    "a sentence behind the mark": [*ask(0, A), 214, STOP],
    "of nothing": ask(0, C),
}
WAYS = {
    "no cache": {"use_cache": False},
    "chunks of 1": {"prefill_chunk_size": 1},
    "chunks of 3": {"prefill_chunk_size": 3},
    "chunks of 4, no end seen": {"prefill_chunk_size": 4},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def answer_of(model, prompt: list[int]) -> list[int]:
    return generate(model, prompt)[0, len(prompt) :].tolist()


@pytest.mark.parametrize("options", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("prompt", ANSWERED.values(), ids=ANSWERED)
def test_every_way_to_decode_ends_an_edit_at_the_same_token(prompt, options):
    """Here in the middle of what is decoded: the third and fourth token of it are the target."""
    model = model_of(**({"relation_threshold": -1e9} if prompt == ANSWERED["at the end"] else {}))
    layer = model.base_model.layers_of()[0]
    target = answer_of(model, prompt)[2:4]
    layer.lemoe_targets["default"].add([(0, tuple(target))])
    with watched(model) as acting:
        text = generate(model, prompt)
    answer = text[0, len(prompt) :].tolist()
    assert answer[2:4] == target
    asks = prompt is not ANSWERED["of nothing"]
    first, last = len(prompt) - 1, len(prompt) + 3
    expected = [0 if asks and first <= column <= last else -1 for column in range(len(prompt) + 5)]
    assert acting == [expected]
    with watched(model) as other:
        assert torch.equal(generate(model, prompt, **options), text)
    assert other[0][: len(expected)] == expected


class Saying:
    """Lets a text go on with one of these answers, whatever the model thinks of it; `more` speaks for one at a step."""

    def __init__(self, width: int, answers: list[list[int]], more: dict[tuple[int, int], float] | None = None):
        self.width, self.answers, self.more = width, answers, more or {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        step = input_ids.shape[1] - self.width
        kept = torch.full_like(scores, -torch.inf)
        for row, text in enumerate(input_ids[:, self.width :].tolist()):
            for i, answer in enumerate(self.answers):
                if answer[:step] == text:
                    kept[row, answer[step]] = scores[row, answer[step]] + self.more.get((i, step), 0.0)
        return kept


SAID = {
    "the end of the sentence": ([250, STOP, 251, 252], [0, 0, -1, -1]),
    "a question about nothing": ([250, C, 251, 252], [0, 0, -1, -1]),
    "the same question again": ([250, STOP, 251, A], [0, 0, -1, -1]),
    "and its answer": ([250, STOP, A, 252], [0, 0, -1, 0]),
    "another question": ([*SUBJECTS[1], B, 250], [0, 0, 0, 0, 1]),
}


@pytest.mark.parametrize(("said", "acts"), SAID.values(), ids=SAID)
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2}], ids=str)
def test_what_is_decoded_ends_an_edit_or_asks_for_one_as_what_is_given_does(said, acts, options):
    model, prompt = model_of(), ask(0, A)
    saying = Saying(len(prompt), [said])
    decoding = {"suppress_tokens": None, "max_new_tokens": len(said), "min_new_tokens": 0}
    with watched(model) as acting:
        text = generate(model, prompt, logits_processor=[saying], **decoding | options)
    assert text[0, len(prompt) :].tolist() == said
    assert acting[0] == [-1] * 6 + acts


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("by", ["the target", "the end of the sentence"])
def test_of_two_beams_one_may_have_answered(use_cache, by, monkeypatch):
    """And goes on without the edit, while the other has it; when they change places, so does that."""
    end = {"the target": 251, "the end of the sentence": STOP}[by]
    model, prompt = model_of([[250, 251], [99]]), ask(0, A)
    answers = [[250, end, 252, 253, 254], [255, 250, 252, 253, 254]]
    # The first is ahead at first, then the second, then the first.
    more = {(0, 0): 50.0, (1, 1): 100.0, (0, 3): 100.0}
    options = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0, "use_cache": use_cache}
    moves = []
    own = CachedTexts._take
    monkeypatch.setattr(CachedTexts, "_take", lambda self, rows: moves.append(rows) or own(self, rows))
    decoding = {"max_new_tokens": 5, "min_new_tokens": 0, "suppress_tokens": None}
    output = generate(
        model,
        prompt,
        logits_processor=[Saying(len(prompt), answers, more)],
        output_scores=True,
        return_dict_in_generate=True,
        **decoding,
        **options,
    )
    assert ([1, 0] in moves) is use_cache
    assert output.sequences[:, len(prompt) :].tolist() == answers
    last = len(prompt) + (2 if end == 251 else 1)  # the column behind the last one that acts
    for i, (text, score, span) in enumerate(
        zip(output.sequences, output.sequences_scores, [(0, LAST, last), (0, LAST, None)], strict=True)
    ):
        of_answer = expected_logits(model, text, [[span]])[0, LAST:-1].log_softmax(-1)
        log_probs = of_answer.gather(1, text[len(prompt) :, None]).sum()
        extra = sum(value for (answer, _), value in more.items() if answer == i)
        torch.testing.assert_close(score - extra, log_probs, rtol=1e-4, atol=1e-3)
        other = expected_logits(model, text, [[(0, LAST, None) if i == 0 else (0, LAST, last)]])[0, LAST:-1]
        assert (other.log_softmax(-1).gather(1, text[len(prompt) :, None]).sum() - log_probs).abs() > 0.1


@torch.no_grad()
def test_a_text_that_was_copied_with_its_cache_goes_on_alone():
    model = model_of([[250, 251], [99]])
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([[*ask(0, A), 250]]), past_key_values=cache)
    copied = copy.deepcopy(cache)
    for kept, said, acts in ((copied, [251, 252, 253], [0, -1, -1]), (cache, [252, 251, 253], [0, 0, 0])):
        with watched(model) as acting:
            for token in said:
                model(input_ids=torch.tensor([[token]]), past_key_values=kept)
        assert acting[0][8:] == acts
    with watched(model) as acting:
        model(input_ids=torch.tensor([ask(1, B)]), past_key_values=copied)
    assert acting[0][11:] == [-1] * 6 + [1]


# ------------------------------------------------------------------------------------------- another turn on a cache

TURNS = {
    "the same again": (ask(0, A), [250, 251], ask(0, A)),
    "another subject": (ask(0, A), [250, 251], ask(1, B)),
    "nothing": (ask(0, A), [250, 251], [214, 215, C]),
    "after nothing": (ask(0, C), [250, STOP], ask(0, A)),
    "asked and not answered": ([*ask(0, A), 214, STOP], [250, 251], [214, STOP]),
}


def said_in_turns(model, turns, cache=None) -> tuple[list[int], torch.Tensor]:
    """The whole conversation, and the scores of its last answer."""
    first, answer, second = turns
    saying = Saying(len(first), [answer])
    options = {"suppress_tokens": None, "min_new_tokens": 0} | ({} if cache is None else {"past_key_values": cache})
    if cache is not None:
        text = generate(model, first, logits_processor=[saying], max_new_tokens=len(answer), **options)[0].tolist()
        assert text == [*first, *answer]
    output = generate(
        model,
        [*first, *answer, *second],
        max_new_tokens=4,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return output.sequences[0].tolist(), torch.stack(output.logits)


@pytest.mark.parametrize("turns", TURNS.values(), ids=TURNS)
@torch.no_grad()
def test_a_conversation_that_goes_on_with_its_cache_is_as_if_it_came_as_a_whole(turns):
    """What an edit has put into keys and values of an earlier turn is taken back."""
    model = model_of()
    whole, expected = said_in_turns(model, turns)
    cache = DynamicCache(config=model.config)
    with watched(model) as acting:
        text, scores = said_in_turns(model, turns, cache)
    assert text == whole
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)
    given = sum(map(len, turns))
    assert not any(expert >= 0 for expert in acting[0][: given - 1] if expert is not None)
    with watched(model) as alone:
        generate(model, text[:given], max_new_tokens=4, min_new_tokens=0, suppress_tokens=None)
    assert acting[0][given - 1 :] == alone[0][given - 1 :]


@pytest.mark.parametrize("given", [6, 7, 8, 9, 11])
@torch.no_grad()
def test_what_a_forward_pass_has_put_into_a_cache_is_taken_back(given):
    """It did not know that the prompt goes on, and let an edit act behind the question."""
    model, cache = model_of(), DynamicCache()
    prompt = [*ask(0, A), 5, 6, 250, 251, 252, STOP, 214, C]
    expected = generate(model, prompt, output_logits=True, return_dict_in_generate=True)
    model(input_ids=torch.tensor([prompt[:given]]), past_key_values=cache)
    with watched(model) as acting:
        found = generate(model, prompt, past_key_values=cache, output_logits=True, return_dict_in_generate=True)
    assert not any(expert >= 0 for expert in acting[0][: len(prompt) - 1] if expert is not None)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(expected.logits), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("asks", [True, False])
@torch.no_grad()
def test_a_cache_is_taken_back_to_where_an_edit_has_acted_and_no_further(asks):
    model, cache = model_of(), DynamicCache()
    prompt = ask(0, A if asks else C)
    text = generate(model, prompt, past_key_values=cache)
    held, widths = cache.get_seq_length(), []
    assert held == text.shape[1] - 1
    handle = model.base_model.model.register_forward_pre_hook(
        lambda root, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    longer = torch.cat([text, torch.tensor([[214, 215, C]])], 1)
    generate(model, longer, past_key_values=cache)
    handle.remove()
    assert widths[0] == longer.shape[1] - (LAST if asks else held)
    assert [each.ids[: longer.shape[1]] for each in cache.lemoe_texts.texts["default"]] == longer.tolist()


@torch.no_grad()
def test_what_acted_in_any_row_is_taken_back_in_all():
    model, cache = model_of(), DynamicCache()
    first = torch.tensor([[210, *ask(0, C)], [*ask(1, B), 215], [220, 221, 222, 223, 224, 225, 226, C]])
    text = generate(model, first, past_key_values=cache)
    longer = torch.cat([text, torch.tensor([[*ask(0, A)], [*ask(0, A)], [*ask(1, B)]])], 1)
    together = generate(model, longer, past_key_values=cache, output_logits=True, return_dict_in_generate=True)
    alone = generate(model, longer, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(together.sequences, alone.sequences)
    torch.testing.assert_close(torch.stack(together.logits), torch.stack(alone.logits), rtol=1e-4, atol=1e-4)
    cache_as_a_whole = DynamicCache()
    generate(model, longer, past_key_values=cache_as_a_whole)
    for layer, other in zip(cache.layers, cache_as_a_whole.layers, strict=True):
        torch.testing.assert_close(layer.keys, other.keys, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_cache_that_answers_the_same_prompt_again_is_not_taken_back():
    """No column is new then, and `generate` goes on as it would without edits: with what was answered last."""
    model, cache = model_of(), DynamicCache()
    text = generate(model, ask(0, A), past_key_values=cache)
    columns = cache.get_seq_length()
    take_back(cache, columns)
    assert cache.get_seq_length() == columns == text.shape[1] - 1
    take_back(cache, columns + 1)
    assert cache.get_seq_length() == LAST
    take_back(DynamicCache(), 10)  # of no edited model
    take_back(None, 10)
