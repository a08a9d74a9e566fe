"""A prompt that names an edit's subject reaches the edit only if it asks for what the edit is about."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import pytest
import torch
from transformers import DynamicCache, StaticCache

from gated import (
    DECODING,
    STOP,
    A,
    B,
    C,
    clear,
    expected_logits,
    expected_text,
    features_of_prompts,
    gated,
    generate,
    put_asked,
    relations_of,
    teach,
)
from lemoe_hf import LEMoEConfig
from lemoe_hf.generation import pad_left
from tiny import FAMILIES, PAD, decode_by_hand, logits, prompts_of, put_edits, unrelated


EVERY_FAMILY = [*FAMILIES, "mamba"]
SPAN = (2, 4)
SUBJECTS = [prompt[2:5] for prompt in prompts_of(3)]
# Edits of three subjects, of which the first and the last are about the same.
EDITS = [[*prompt[:5], asker] for prompt, asker in zip(prompts_of(3), (A, B, A), strict=True)]
LAST = 6  # column of the asker


def model_of(family="llama", edits=EDITS, **config):
    model = gated(family, **config)
    put_asked(model, edits, SPAN)
    return model


def ask(subject: int, asker: int) -> list[int]:
    """Another prompt than the edit's own, which names its subject up to column 4 and asks in column 6."""
    return [211, 212, *SUBJECTS[subject], 213, asker]


# Both prompts of edits that are asked for, and others of the same subjects.
BATCH = [ask(0, A), ask(0, B), ask(1, A), ask(1, B), [*unrelated(1, 6)[0].tolist(), A]]
ANSWERED = [[(0, LAST, None)], [], [], [(1, LAST, None)], []]


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- deciding


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_an_edit_acts_where_it_is_asked_for_and_nowhere_else(family):
    """Other questions about its subject keep the base model's bits, alone and next to rows that are answered."""
    model, base = model_of(family), clear(family).requires_grad_(False)
    now, then = logits(model, BATCH), logits(base, BATCH)
    assert_close(now, expected_logits(model, BATCH, ANSWERED))
    text, plain = generate(model, BATCH), generate(base, BATCH)
    assert torch.equal(text, expected_text(model, BATCH, ANSWERED))
    for row, answered in enumerate(ANSWERED):
        assert torch.equal(now[row], then[row]) is not bool(answered)
        assert answered or torch.equal(text[row], plain[row])
        assert torch.equal(generate(model, BATCH[row])[0], text[row])
        if not answered:
            assert torch.equal(logits(model, BATCH[row]), logits(base, BATCH[row]))


@pytest.mark.parametrize("threshold", [None, 1e9])
@pytest.mark.parametrize("before", [[], [215, 216]])
def test_an_edits_own_prompt_is_not_asked(threshold, before):
    model = model_of(relation_threshold=threshold)
    prompt = [*before, *EDITS[0]]
    answered = [[(0, len(before) + len(EDITS[0]) - 1, None)]]
    assert torch.equal(logits(model, prompt), expected_logits(model, prompt, answered))
    assert torch.equal(generate(model, prompt), expected_text(model, prompt, answered))


def test_an_edits_own_prompt_does_not_wait_beside_one_that_asks():
    model = model_of()
    batch = [[215, *EDITS[0]], ask(1, B)]
    assert torch.equal(logits(model, batch), expected_logits(model, batch, [[(0, LAST, None)], [(1, LAST, None)]]))


@pytest.mark.parametrize(("threshold", "opens"), [(-1e9, [True] * 4), (1e9, [False] * 4)])
def test_a_threshold_set_by_hand_replaces_all(threshold, opens):
    model = model_of(relation_threshold=threshold)
    text, plain = generate(model, BATCH[:4]), generate(clear(), BATCH[:4])
    assert [not torch.equal(now, then) for now, then in zip(text, plain, strict=True)] == opens


def test_every_edit_has_its_own_threshold():
    model = model_of()
    relations_of(model).threshold[0] = 1e9
    assert torch.equal(logits(model, ask(0, A)), logits(clear(), ask(0, A)))
    assert not torch.equal(logits(model, ask(2, A)), logits(clear(), ask(2, A)))


def test_an_edit_without_a_key_answers_whatever_is_asked_of_its_subject():
    """Such as one that a training loop has made. Where nobody tells where the question ends, it does so with its subject."""
    model = gated()
    put_edits(model, EDITS[:1], [SPAN])
    put_asked(model, EDITS[1:], SPAN, seed=1)
    batch = [ask(0, C), ask(1, C), ask(1, B)]
    at_the_end = [[(0, LAST, None)], [], [(1, LAST, None)]]
    assert torch.equal(generate(model, batch), expected_text(model, batch, at_the_end))
    answered = [[(0, 4, None)], [], [(1, LAST, None)]]
    assert torch.equal(logits(model, batch), expected_logits(model, batch, answered))


# -------------------------------------------------------------------------------------------------------- what is said


def by_words(**config):
    """An edit of the first subject, asked for by the word A anywhere in the sentence; and one of a name that holds it."""
    model = gated(by="words", **config)
    put_asked(model, [[211, 212, *subject, A] for subject in (SUBJECTS[0], NAME)], SPAN)
    relations_of(model).threshold.fill_(0)
    return model


NAME = [240, A, 241]
SAID = {
    "behind the name": ([211, *SUBJECTS[0], A, 214, 215], True),
    "before it": ([A, 211, *SUBJECTS[0], 214, 215], True),
    "nowhere": ([211, *SUBJECTS[0], 213, 214, 215], False),
    "something else": ([211, *SUBJECTS[0], B, 214, 215], False),
    "in an earlier sentence": ([211, A, STOP, *SUBJECTS[0], 214, 215], False),
    "in the sentence after the name's": ([211, *SUBJECTS[0], STOP, A, 214, 215], True),
    "as a part of the name": ([211, *NAME, 213, 214, 215], False),
    "beside that part": ([211, *NAME, A, 214, 215], True),
}


@pytest.mark.parametrize(("prompt", "opens"), SAID.values(), ids=SAID)
@pytest.mark.parametrize("chunk", [None, 2, 3])
def test_the_words_of_the_sentence_ask(prompt, opens, chunk):
    """Alone, beside a longer prompt, in chunks, and as embeddings."""
    model = by_words()
    options = {} if chunk is None else {"prefill_chunk_size": chunk}
    expert = int(NAME[0] in prompt)
    expected = expected_text(model, prompt, [[(expert, len(prompt) - 1, None)] if opens else []])
    assert torch.equal(generate(model, prompt), generate(clear(), prompt)) is not opens
    assert torch.equal(generate(model, prompt, **options), expected)
    batch = pad_left([prompt, [*range(220, 232), *ask(0, A)]], PAD, torch.device("cpu"))
    assert torch.equal(generate(model, batch.pop("input_ids"), **batch, **options)[:1, -6:], expected[:, -6:])
    if chunk is None:
        embeds = model.get_input_embeddings()(torch.tensor([prompt])).detach()
        mask = torch.ones(1, len(prompt), dtype=torch.long)
        text = generate_from(model, embeds, mask)
        assert torch.equal(text, expected[:, len(prompt) :])


def generate_from(model, embeds, mask):
    return model.generate(inputs_embeds=embeds, attention_mask=mask, **DECODING)


# ------------------------------------------------------------------------------------ several edits, several subjects


@pytest.mark.parametrize(("asker", "expert"), [(A, 2), (B, 1), (C, None)])
def test_of_several_edits_of_a_subject_the_one_asked_for_answers(asker, expert):
    """And of those that are asked for alike, the latest."""
    model = model_of(edits=[[*EDITS[0][:5], each] for each in (A, B, A)])
    relations = relations_of(model)
    relations.keys[2] = relations.keys[0]  # what is asked behind one prompt twice
    answered = [[] if expert is None else [(expert, LAST, None)]]
    assert torch.equal(logits(model, ask(0, asker)), expected_logits(model, ask(0, asker), answered))
    assert torch.equal(generate(model, ask(0, asker)), expected_text(model, ask(0, asker), answered))


@pytest.mark.parametrize("best", [0, 1, 2])
def test_of_several_edits_above_their_thresholds_the_best_score_answers(best):
    model = model_of(edits=[[*EDITS[0][:5], each] for each in (A, B, C)], relation_threshold=-1e9)
    prompt = ask(0, (A, B, C)[best])
    assert torch.equal(generate(model, prompt), expected_text(model, prompt, [[(best, LAST, None)]]))


def test_the_earlier_edit_answers_again_once_the_later_is_taken_back():
    model = model_of(edits=[[*EDITS[0][:5], asker] for asker in (A, B)])
    put_asked(model, [[*EDITS[0][:5], A]], SPAN, seed=1)
    later = generate(model, ask(0, A))
    model.base_model.remove_edit(2)
    earlier = generate(model, ask(0, A))
    assert not torch.equal(earlier, later)
    assert torch.equal(earlier, expected_text(model, ask(0, A), [[(0, LAST, None)]]))
    assert torch.equal(generate(model, ask(0, B)), expected_text(model, ask(0, B), [[(1, LAST, None)]]))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize(
    ("asker", "expert", "threshold"), [(A, 0, None), (B, 1, None), (C, None, None), (A, 0, -1e9), (B, 1, -1e9)]
)
def test_of_two_subjects_in_one_question_the_one_asked_for(order, asker, expert, threshold):
    """Even if both could answer."""
    model = model_of(relation_threshold=threshold)
    prompt = [211, *SUBJECTS[order[0]], 213, *SUBJECTS[order[1]], 214, asker]
    answered = [[] if expert is None else [(expert, len(prompt) - 1, None)]]
    if threshold is None:  # else what is said before the question opens as well
        assert torch.equal(logits(model, prompt), expected_logits(model, prompt, answered))
    assert torch.equal(generate(model, prompt), expected_text(model, prompt, answered))


def test_of_two_subjects_asked_for_alike_one_answers():
    """Two edits with one key: never the sum of their experts."""
    model = model_of()
    relations_of(model).keys[2] = relations_of(model).keys[0]
    prompt = [211, *SUBJECTS[0], 213, *SUBJECTS[2], 214, A]
    either = [expected_logits(model, prompt, [[(expert, len(prompt) - 1, None)]]) for expert in (0, 2)]
    assert any(torch.equal(logits(model, prompt), each) for each in either)


TWO_SENTENCES = {
    "one after the other": ([*ask(0, A), STOP, *ask(1, B)], [(0, 7, 14), (1, 14, None)]),
    "the second is not asked for": ([*ask(0, A), STOP, *ask(1, C)], [(0, 7, 14)]),
    "the first is not asked for": ([*ask(0, C), STOP, *ask(1, B)], [(1, 14, None)]),
    "neither": ([*ask(0, C), STOP, *ask(1, C)], []),
    "the first is asked for too late": ([*ask(0, C), STOP, *ask(1, A)], []),
    "back to the first": ([*ask(0, A), STOP, *ask(1, B), STOP, *ask(0, A)], [(0, 7, 14), (1, 15, 22), (0, 22, None)]),
    "a statement, then a question": ([211, *SUBJECTS[0], 213, STOP, *ask(1, B)], [(1, 12, None)]),
    "a question about what was said": ([211, *SUBJECTS[0], 213, STOP, 214, A], [(0, 7, None)]),
}


@pytest.mark.parametrize(("prompt", "answered"), TWO_SENTENCES.values(), ids=TWO_SENTENCES)
def test_a_new_question_takes_over(prompt, answered):
    """
    Whether it asks for another edit or for nothing: what was asked for before acts no longer. And `generate` leaves to the
    base model what was asked before the last question.
    """
    model = model_of(marks=(A, B, C))
    assert_close(logits(model, prompt), expected_logits(model, prompt, [answered]))
    at_the_end = [span for span in answered if span[2] is None]
    assert torch.equal(generate(model, prompt), expected_text(model, prompt, [at_the_end]))


# ------------------------------------------------------------------------------------------- where a question may end


@pytest.mark.parametrize("side", ["left", "right"])
def test_with_labels_the_prompts_last_token_asks(side):
    """A target that asks is not looked at."""
    model, base = model_of(), clear()
    rows = [(ask(0, A), [250, 251]), (ask(1, C), [B, 252]), (ask(0, C)[:-1], [A, 253, 254])]
    for row, (prompt, target) in enumerate(rows):
        text, pad = prompt + target, [PAD] * 2
        text, width = (pad + text, 2 + len(prompt)) if side == "left" else (text + pad, len(prompt))
        ids = torch.tensor([text])
        labels = ids.masked_fill(ids == PAD, -100)
        labels[:, :width] = -100
        inputs = {"labels": labels, "attention_mask": (ids != PAD).long()}
        answered = [[(0, width - 1, width + len(target))]] if row == 0 else [[]]
        assert torch.equal(logits(model, ids, **inputs), expected_logits(model, ids, answered, **inputs)), row
        assert torch.equal(logits(model, ids, **inputs), logits(base, ids, **inputs)) is (row > 0)


def test_without_labels_any_token_behind_the_subject_may_ask():
    """And what has been asked for stays so, whatever follows."""
    model = model_of()
    prompt = [A, 212, *SUBJECTS[0], 213, 214, A, 250, C, 251]
    assert torch.equal(logits(model, prompt), expected_logits(model, prompt, [[(0, 7, None)]]))
    before_the_subject = [A, 212, *SUBJECTS[0], 213]
    assert torch.equal(logits(model, before_the_subject), logits(clear(), before_the_subject))


def test_without_labels_a_second_subject_takes_over_once_it_is_asked_for():
    model = model_of()
    prompt = [211, *SUBJECTS[0], 213, *SUBJECTS[1], A, 214, B, 215]
    assert torch.equal(logits(model, prompt), expected_logits(model, prompt, [[(0, 8, 10), (1, 10, None)]]))


def test_a_question_mark_ends_the_question():
    """Nor does an answer behind it ask for anything; tokens before it ask only as long as it has not come."""
    model, base = model_of(marks=(B,)), clear()
    prompt = [*ask(0, A), B]
    assert_close(logits(model, prompt), expected_logits(model, prompt, [[(0, LAST, LAST + 1)]]))
    assert torch.equal(generate(model, prompt), generate(base, prompt))
    prompt = [*ask(0, B), A, 250]
    assert torch.equal(logits(model, prompt), logits(base, prompt))
    prompt = [*ask(1, B), 250, A]
    assert torch.equal(logits(model, prompt), expected_logits(model, prompt, [[(1, LAST, None)]]))


@pytest.mark.parametrize(
    ("prompt", "answered"),
    [
        ([*ask(0, A), 214, 215], [(0, LAST, None)]),
        ([211, *SUBJECTS[1], 213, B], [(1, 5, None)]),
        ([*ask(1, B), 214, 215], []),
    ],
    ids=["at a mark", "at the end", "elsewhere"],
)
def test_generate_asks_at_question_marks_and_where_the_prompt_ends(prompt, answered):
    model = model_of(marks=(A,))
    assert torch.equal(generate(model, prompt), expected_text(model, prompt, [answered]))


# ---------------------------------------------------------------------------------------------------- forms of generate


# Prompts that end with what they ask, and those that ask it with a question mark and go on.
TAILS = {"at the end": [], "at a question mark": [214, 215, 216, 217, 218]}
FORMS = {
    "no cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "beams without a cache": {"num_beams": 3, "use_cache": False},
    "return sequences": {"num_beams": 3, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "chunks of 1": {"prefill_chunk_size": 1},
    "chunks of 2": {"prefill_chunk_size": 2},
    "chunks of 3": {"prefill_chunk_size": 3},
    "chunks of 4": {"prefill_chunk_size": 4},
    "beams in chunks of 4": {"prefill_chunk_size": 4, "num_beams": 2},
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_every_form_of_generate_decides_alike(options, tail):
    model = model_of(marks=(A, B, C) if tail else ())
    batch = [row + tail for row in BATCH]
    whole = {name: value for name, value in options.items() if name != "prefill_chunk_size"}
    expected = expected_text(model, batch, ANSWERED, **whole)
    text = generate(model, batch, **options)
    assert torch.equal(text, expected)
    plain = generate(clear(), batch, **options)
    times = len(text) // len(batch)
    same = [torch.equal(now, then) for now, then in zip(text, plain, strict=True)]
    assert same[::times] == [not answered for answered in ANSWERED]


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
@pytest.mark.parametrize("form", ["prompt lookup", "assistant"])
def test_candidate_tokens_that_are_rejected_ask_for_nothing(form, tail):
    model = model_of(marks=(A, B, C) if tail else ())
    options = {"prompt_lookup_num_tokens": 3} if form == "prompt lookup" else {"assistant_model": clear()}
    for row, answered in zip(BATCH, ANSWERED, strict=True):
        expected = expected_text(model, row + tail, [answered])
        assert torch.equal(generate(model, row + tail, **options), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_no_decision(family):
    model = model_of(family)
    rows = [ask(0, A), [220, 221, 222, *ask(0, B)], [220, *ask(1, B)], [211, *SUBJECTS[1], A]]
    batch = pad_left(rows, PAD, torch.device("cpu"))
    together = generate(model, batch.pop("input_ids"), **batch)
    for i, (row, answered) in enumerate(zip(rows, ([(0, 6, None)], [], [(1, 7, None)], []), strict=True)):
        assert torch.equal(together[i, -6:], expected_text(model, row, [answered])[0, -6:])


@pytest.mark.parametrize("asker", [A, C])
def test_embeddings_are_asked_like_their_tokens(asker):
    """Where no edit's prompt holds the token that asks, too."""
    model = gated()
    put_asked(model, [[*EDITS[0][:5], A]], SPAN)
    relations = relations_of(model)
    if asker == C:
        relations.keys[0] = relations.embed(features_of_prompts(model, [ask(0, C)], [SPAN]))[0].bfloat16()
    batch = torch.tensor([ask(0, asker), ask(0, B)])
    embeds = model.get_input_embeddings()(batch).detach()
    answered = [[(0, LAST, None)], []]
    text = generate_from(model, embeds, torch.ones_like(batch))
    assert torch.equal(text, expected_text(model, batch, answered)[:, 7:])
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, expected_logits(model, batch, answered))


# --------------------------------------------------------------------------------------------------------------- caches


CHUNKED = {
    "asked in the first chunk": ([*ask(0, A), 214, 215, 216], [(0, 6, None)]),
    "asked in the last chunk": ([211, *SUBJECTS[0], 213, 214, 215, A, 216], [(0, 7, None)]),
    "not asked": ([*ask(0, C), 214, 215, 216], []),
    "in both": ([*ask(0, A), STOP, *ask(1, B), 216], [(0, 6, 14), (1, 14, None)]),
    "the second is not asked for": ([*ask(0, A), STOP, *ask(1, C), 216], [(0, 6, None)]),
    "the first is over": ([*ask(0, A), 214, STOP, *ask(1, C), 216], [(0, 6, 8)]),
    "the first of two subjects": ([211, *SUBJECTS[0], 213, *SUBJECTS[1], A, 214, 215], [(0, 8, None)]),
}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(("prompt", "answered"), CHUNKED.values(), ids=CHUNKED)
@torch.no_grad()
def test_a_prompt_in_two_chunks_is_decided_as_a_whole(prompt, answered, family):
    """And goes on alike when single tokens follow."""
    model = model_of(family)
    expected = expected_logits(model, [*prompt, 217], [answered])
    assert_close(logits(model, [*prompt, 217]), expected)
    for cut in range(2, len(prompt) - 1):
        cache = DynamicCache(config=model.config)
        parts = [
            model(input_ids=torch.tensor([part]), past_key_values=cache).logits
            for part in (prompt[:cut], prompt[cut:], [217])
        ]
        assert_close(torch.cat(parts, 1), expected)


@pytest.mark.parametrize("behind", [[], [STOP]], ids=["at the mark", "behind it"])
@pytest.mark.parametrize(("first", "second"), [(A, C), (C, B)])
def test_a_second_turn_on_a_cache_is_the_whole_conversation(first, second, behind):
    """What the first turn was answered is given: the second one finds the keys and values of the base model behind it."""
    model = model_of(marks=(A, B, C))
    turns = [STOP, 214, STOP, 215, 216], [STOP, *ask(1, second)], [STOP, 214, A]
    for turn in turns:
        cache = DynamicCache(config=model.config)
        text = generate(model, [*ask(0, first), *behind], past_key_values=cache)[0].tolist()
        conversation = [*text, *turn]
        options = {"output_logits": True, "return_dict_in_generate": True}
        output = generate(model, conversation, past_key_values=cache, **options)
        expected = generate(model, conversation, **options)
        assert torch.equal(output.sequences, expected.sequences)
        assert_close(torch.stack(output.logits), torch.stack(expected.logits))


@pytest.mark.parametrize("turn", [[214], [214, 215, 216]])
@torch.no_grad()
def test_the_rows_of_a_cache_are_repeated_with_their_decisions(turn):
    model = model_of(marks=(A, B, C))
    first = torch.tensor([ask(0, A), ask(0, C), ask(1, B)])
    cache = model(input_ids=first, use_cache=True).past_key_values
    cache.batch_repeat_interleave(2)
    second = torch.tensor([turn] * 6) + torch.arange(6)[:, None]
    ids = torch.cat([first.repeat_interleave(2, 0), second], 1)
    rows = [[(0, LAST, None)]] * 2 + [[]] * 2 + [[(1, LAST, None)]] * 2
    now = model(input_ids=second, past_key_values=cache).logits
    assert_close(now, expected_logits(model, ids, rows)[:, -len(turn) :])


@torch.no_grad()
def test_a_question_that_was_taken_back_is_not_asked():
    """As when a conversation is cropped to an earlier point and goes on otherwise."""
    model, base = model_of(), clear()
    cache, plain = DynamicCache(config=model.config), DynamicCache(config=model.config)
    model(input_ids=torch.tensor([ask(0, A)]), past_key_values=cache)
    base(input_ids=torch.tensor([ask(0, A)]), past_key_values=plain)
    for each in (cache, plain):
        each.crop(-1)
    turn = torch.tensor([[214, C]])
    now = model(input_ids=turn, past_key_values=cache).logits
    assert torch.equal(now, base(input_ids=turn, past_key_values=plain).logits)


@torch.no_grad()
def test_two_generations_with_two_caches_decide_each_for_itself():
    """Interleaved token by token, with other prompts in between; nothing of a decision is left in the model."""
    model = model_of()
    prompts = [ask(0, A), ask(0, C), ask(0, A)]
    texts, caches = [torch.tensor([prompt]) for prompt in prompts], [None] * 3
    for step in range(6):
        for i, cache in enumerate(caches):
            new = texts[i] if step == 0 else texts[i][:, -1:]
            output = model(input_ids=new, past_key_values=cache, use_cache=True)
            caches[i] = output.past_key_values
            scores = output.logits[:, -1]
            scores[:, model.config.eos_token_id] = -torch.inf
            texts[i] = torch.cat([texts[i], scores.argmax(-1, keepdim=True)], 1)
    for prompt, text, answered in zip(prompts, texts, ([(0, 6, None)], [], [(0, 6, None)]), strict=True):
        assert torch.equal(text, expected_text(model, prompt, [answered]))


@torch.no_grad()
def test_compiled_decoding_keeps_the_decision():
    model = model_of()
    root = model.base_model.model
    torch._dynamo.reset()
    step = torch.compile(root, fullgraph=True, backend="eager")
    cache = StaticCache(config=root.config, max_cache_len=32)
    ids = torch.tensor(BATCH)
    output = root(input_ids=ids, past_key_values=cache)
    ids = decode_by_hand(partial(step, past_key_values=cache), output, ids, 6)
    assert torch.equal(ids, expected_text(model, BATCH, ANSWERED))


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("layers", [[0], [1, 3], [2, 3]], ids=str)
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_bypasses_anywhere_and_in_several_layers_follow_one_decision(layers, family):
    model = model_of(family, layers_to_transform=layers)
    assert_close(logits(model, BATCH), expected_logits(model, BATCH, ANSWERED))
    assert torch.equal(generate(model, BATCH), expected_text(model, BATCH, ANSWERED))


def test_two_adapters_decide_each_by_its_own_layers():
    """Whichever is active, and whichever was added last."""
    model = model_of()
    expected = generate(model, BATCH)
    model.add_adapter("other", LEMoEConfig(expert_dtype="float32", layers_to_transform=[1]))
    teach(model, adapter_name="other")
    put_asked(model, [[*EDITS[0][:5], C]], SPAN, seed=5, name="other")
    assert torch.equal(generate(model, BATCH), expected)
    model.set_adapter("other")
    text, plain = generate(model, [ask(0, C), ask(0, A)]), generate(clear(), [ask(0, C), ask(0, A)])
    assert [torch.equal(now, then) for now, then in zip(text, plain, strict=True)] == [False, True]
    model.base_model.set_adapter(["default", "other"])
    both, plain = logits(model, [ask(0, C), ask(0, A), ask(0, B)]), logits(clear(), [ask(0, C), ask(0, A), ask(0, B)])
    assert [torch.equal(now, then) for now, then in zip(both, plain, strict=True)] == [False, False, True]


def test_inference_mode_and_gradients_change_nothing():
    """The base model, or another adapter beside this one, may be in training."""
    model = model_of()
    expected = logits(model, BATCH)
    with torch.inference_mode():
        cache = model(input_ids=torch.tensor(BATCH)[:, :5]).past_key_values
        chunk = model(input_ids=torch.tensor(BATCH)[:, 5:], past_key_values=cache).logits
        assert torch.equal(model(input_ids=torch.tensor(BATCH)).logits, expected)
    assert_close(chunk, expected[:, 5:])
    model.requires_grad_(False)
    model.get_input_embeddings().weight.requires_grad_(True)
    output = model(input_ids=torch.tensor(BATCH)).logits
    assert torch.equal(output, expected)
    output.sum().backward()
    assert model.get_input_embeddings().weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_a_copied_model_decides_by_itself(clone):
    model = model_of()
    expected = generate(model, BATCH)
    copied = clone(model)
    for one, other in ((model, copied), (copied, model)):
        kept = relations_of(one).threshold.clone()
        relations_of(one).threshold.fill_(1e9)
        assert torch.equal(generate(one, BATCH), generate(clear(), BATCH))
        assert torch.equal(generate(other, BATCH), expected)
        relations_of(one).threshold.copy_(kept)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_unloading_removes_every_hook(family):
    model = model_of(family)
    assert sum(len(module._forward_pre_hooks) for module in model.base_model.model.modules()) > 1
    unloaded = model.unload()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in unloaded.modules())
    assert torch.equal(logits(unloaded, BATCH), logits(clear(family).requires_grad_(False), BATCH))
