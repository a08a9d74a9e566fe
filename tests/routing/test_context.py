"""What is routed once a sequence, and what is kept with its cache."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from lemoe_hf.routing.route import Route
from transformers import DynamicCache

from gated import A, clear, gated, generate, put_asked
from lemoe_hf.routing.context import RoutingContext
from tiny import PAD, edited, logits, prompts_of, put_edits, tiny, unrelated


PROMPTS = prompts_of(4)
SPAN = (2, 4)


def model_of(**config):
    model = edited(**config)
    put_edits(model, PROMPTS, subjects=[SPAN] * 4)
    return model


def route_of(rows: list[list[tuple[int, int, int]]], num_committed=9) -> Route:
    """A route whose slots are given as (expert, start, end); expert -1 is an empty slot."""
    table = torch.tensor(rows)
    experts, start, end = table.unbind(-1)
    gates = (experts >= 0).float()
    return Route(experts.clamp(min=0), gates, start, end, num_committed, last_start=int(start.max()))


# ------------------------------------------------------------------------------------------------------------------ routes


def test_gates_act_from_start_to_end():
    route = route_of([[(0, 1, 3), (1, 3, Route.ENDLESS)], [(-1, 0, 0), (2, 2, Route.ENDLESS)]])
    assert route.gates_at(5).tolist() == [[[0, 1, 1, 0, 0], [0, 0, 0, 1, 1]], [[0, 0, 0, 0, 0], [0, 0, 1, 1, 1]]]
    assert route.at(2).gates_at(2).tolist() == [[[1, 0], [0, 1]], [[0, 0], [1, 1]]]


def test_behind_the_last_start_only_endless_slots_are_left():
    """So that decoding costs one expert a row, however many subjects the prompt holds."""
    route = route_of([[(0, 1, 3), (1, 3, Route.ENDLESS)], [(-1, 0, 0), (2, 2, Route.ENDLESS)]])
    route.seal()
    later = route.at(4)
    assert later is route.final
    assert later.experts.tolist() == [[1], [2]]
    assert later.gates_at(1).tolist() == [[[1]], [[1]]]
    assert route.at(3) is not route.final


def test_a_deferred_row_stays_deferred_behind_the_last_start():
    route = route_of([[(0, 1, Route.ENDLESS)], [(-1, 0, 0)]])
    route.seal()
    assert route.at(9).gates_at(2).tolist() == [[[1, 1]], [[0, 0]]]


def test_rows_are_repeated_as_generate_repeats_them():
    route = route_of([[(0, 1, Route.ENDLESS)], [(1, 2, Route.ENDLESS)]])
    route.seal()
    repeated = route.repeat(6)
    assert repeated.experts[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert repeated.final.experts[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert route.repeat(2) is route


# ----------------------------------------------------------------------------------------------------------------- caches


@torch.no_grad()
def test_the_route_is_computed_once_a_prompt(monkeypatch):
    """Not again for decoded tokens; and for every new prompt, though it uses no cache."""
    model, calls = model_of(), []
    layer = model.base_model.lemoe_layers()[0]
    original = type(layer).route
    monkeypatch.setattr(type(layer), "route", lambda *args: calls.append(1) or original(*args))
    model.generate(input_ids=torch.tensor(PROMPTS), max_new_tokens=8, min_new_tokens=8, pad_token_id=PAD)
    assert len(calls) == 1
    cache = model(input_ids=torch.tensor(PROMPTS), use_cache=True).past_key_values
    for _ in range(3):
        cache = model(input_ids=torch.tensor([[5]] * 4), past_key_values=cache).past_key_values
    assert len(calls) == 2
    logits(model, PROMPTS)
    assert len(calls) == 3


@torch.no_grad()
def test_the_route_is_found_on_the_cache_that_was_given_or_made():
    model = model_of()
    given = DynamicCache(config=model.config)
    model(input_ids=torch.tensor(PROMPTS), past_key_values=given)
    made = model(input_ids=torch.tensor(PROMPTS), use_cache=True).past_key_values
    for cache in (given, made):
        assert cache.lemoe_state.routes["default"].experts[:, -1].tolist() == [0, 1, 2, 3]
        assert cache.lemoe_state.ids.tolist() == PROMPTS


@torch.no_grad()
def test_a_subject_cut_by_two_chunks_is_found():
    model, prompt = model_of(), [201, 202, *PROMPTS[0][2:5], 203]
    full = logits(model, prompt)
    assert not torch.equal(full, logits(tiny(), prompt))
    for cut in range(1, len(prompt)):
        cache = DynamicCache(config=model.config)
        parts = [
            model(input_ids=torch.tensor([part]), past_key_values=cache).logits
            for part in (prompt[:cut], prompt[cut:])
        ]
        if cut == len(prompt) - 1:
            continue  # a single token on a filled cache is decoding
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_decoded_tokens_are_no_part_of_the_next_turns_prompt():
    """Two tokens that were decoded and one of the new turn spell a subject together."""
    model = model_of()
    subject, cache = PROMPTS[0][2:5], DynamicCache(config=model.config)
    base, plain = tiny(), DynamicCache(config=model.config)
    turns = [[210, 211, 212], subject[:1], subject[1:2], [subject[2], 213]]
    for turn in turns:
        now = model(input_ids=torch.tensor([turn]), past_key_values=cache).logits
        assert torch.equal(now, base(input_ids=torch.tensor([turn]), past_key_values=plain).logits)


@torch.no_grad()
def test_a_cropped_cache_is_routed_by_what_is_left():
    """As when a conversation is taken back to an earlier point."""
    model, base = model_of(), tiny()
    cache, plain = DynamicCache(config=model.config), DynamicCache(config=model.config)
    lead = unrelated(1, length=4)[0].tolist()
    model(input_ids=torch.tensor([lead + PROMPTS[0]]), past_key_values=cache)
    base(input_ids=torch.tensor([lead]), past_key_values=plain)
    cache.crop(-6)
    turn = torch.tensor([[220, 221, 222]])
    now = model(input_ids=turn, past_key_values=cache).logits
    torch.testing.assert_close(now, base(input_ids=turn, past_key_values=plain).logits, rtol=1e-5, atol=1e-5)


def by_pickle(cache):
    return pickle.loads(pickle.dumps(cache))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
@pytest.mark.parametrize("by_generate", [False, True])
@torch.no_grad()
def test_a_copied_cache_goes_on_where_it_was_without_a_copy_of_the_model(by_generate, duplicate, monkeypatch):
    """As when many prompts begin alike; here with a subject about which the beginning has not asked yet."""
    model = gated()
    put_asked(model, [[*PROMPTS[0][:5], A]], SPAN)
    ids, cache = torch.tensor([[211, *PROMPTS[0][2:5], 213, A]]), DynamicCache(config=model.config)
    if by_generate:
        generate(model, ids[:, :4], past_key_values=cache, max_new_tokens=1, min_new_tokens=1)
    else:
        model(input_ids=ids[:, :4], past_key_values=cache)
    with monkeypatch.context() as patched:
        patched.setattr(torch.nn.Module, "__reduce_ex__", lambda *args: pytest.fail("A module was copied."))
        copies = [duplicate(cache) for _ in range(2)]
    expected = generate(model, ids)
    assert not torch.equal(expected, generate(clear(), ids))
    for each in copies:
        assert torch.equal(generate(model, ids, past_key_values=each), expected)


# ---------------------------------------------------------------------------------------------------------------- contexts


def test_a_model_has_one_context_however_many_adapters():
    model = model_of()
    root = model.base_model.model
    context = model.base_model.context
    model.add_adapter("other", type(model.peft_config["default"])())
    assert RoutingContext.of(root) is context is model.base_model.context
    assert len(root._forward_pre_hooks) == 1


def test_pinned_routes_end_with_the_block_and_hold_for_one_model_only():
    model, other = model_of(), model_of()
    routed, plain = logits(model, PROMPTS), logits(tiny(), PROMPTS)
    with model.base_model.context.pinned({}):
        assert torch.equal(logits(model, PROMPTS), plain)
        assert torch.equal(logits(other, PROMPTS), routed)
    assert torch.equal(logits(model, PROMPTS), routed)


def test_a_failing_forward_pass_leaves_no_route_behind():
    model = model_of()
    with pytest.raises(TypeError):
        model(input_ids=torch.tensor(PROMPTS), no_such_argument=lambda: 0, position_ids="x")
    layer = model.base_model.lemoe_layers()[0]
    x = torch.randn(4, 6, layer.in_features)
    assert model.base_model.context.routes == {}
    assert torch.equal(layer(x), layer.base_layer(x))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_no_part_of_a_prompt_even_where_its_token_is(side):
    """An edit whose prompt holds the token that others are padded with."""
    model = edited()
    put_edits(model, [[20, 21, PAD, PAD], [PAD, PAD, 20, 21]])
    ids = torch.tensor([[20, 21, PAD, PAD] if side == "right" else [PAD, PAD, 20, 21]])
    mask = (ids != PAD).long()
    assert not torch.equal(logits(model, ids), logits(tiny(), ids))
    assert torch.equal(logits(model, ids, attention_mask=mask), logits(tiny(), ids, attention_mask=mask))


def test_a_mask_of_four_dimensions_masks_no_tokens():
    model = model_of()
    mask = torch.zeros(4, 1, 6, 6).masked_fill(torch.ones(6, 6).triu(1).bool(), torch.finfo(torch.float32).min)
    torch.testing.assert_close(
        logits(model, PROMPTS, attention_mask=mask), logits(model, PROMPTS), rtol=1e-4, atol=1e-4
    )


def test_positional_tokens_are_routed_like_named_ones():
    model = model_of()
    with torch.no_grad():
        assert torch.equal(model.base_model.model(torch.tensor(PROMPTS)).logits, logits(model, PROMPTS))
        generated = model.base_model.generate(torch.tensor(PROMPTS), max_new_tokens=3, do_sample=False)
        named = model.generate(input_ids=torch.tensor(PROMPTS), max_new_tokens=3, do_sample=False)
        inputs = model.generate(inputs=torch.tensor(PROMPTS), max_new_tokens=3, do_sample=False)
    assert torch.equal(generated, named)
    assert torch.equal(inputs, named)
