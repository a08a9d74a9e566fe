"""What each forward pass is told, and what is kept with its cache."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache

from gated import A, clear, expected_logits, gated, generate, put_asked, watched
from lemoe_hf import LEMoEConfig
from lemoe_hf.routing.anchors import Anchors
from lemoe_hf.routing.context import RoutingContext
from lemoe_hf.routing.passes import Acting
from tiny import PAD, edited, logits, prompts_of, put_edits, tiny, unrelated


PROMPTS = prompts_of(4)
SPAN = (2, 4)


def model_of(**config):
    model = edited(**config)
    put_edits(model, PROMPTS, subjects=[SPAN] * 4)
    return model


# ----------------------------------------------------------------------------------------------------------------- caches


@torch.no_grad()
def test_anchors_are_looked_for_where_a_question_may_end_and_nowhere_else(monkeypatch):
    """Not for decoded tokens; but for every token of which nobody tells that it is an answer."""
    model, calls = model_of(), []
    original = Anchors.find
    monkeypatch.setattr(Anchors, "find", lambda *args: calls.append(1) or original(*args))
    model.generate(input_ids=torch.tensor(PROMPTS), max_new_tokens=8, min_new_tokens=8, pad_token_id=PAD)
    assert len(calls) == 1
    cache = model(input_ids=torch.tensor(PROMPTS), use_cache=True).past_key_values
    for _ in range(3):
        cache = model(input_ids=torch.tensor([[5]] * 4), past_key_values=cache).past_key_values
    assert len(calls) == 5
    logits(model, PROMPTS)
    assert len(calls) == 6


@torch.no_grad()
def test_texts_are_found_on_the_cache_that_was_given_or_made():
    model = model_of()
    given = DynamicCache(config=model.config)
    model(input_ids=torch.tensor(PROMPTS), past_key_values=given)
    made = model(input_ids=torch.tensor(PROMPTS), use_cache=True).past_key_values
    for cache in (given, made):
        texts = cache.lemoe_texts.texts["default"]
        assert [text.acting.expert for text in texts] == [0, 1, 2, 3]
        assert [text.ids for text in texts] == PROMPTS
        assert cache.lemoe_texts.columns == 6


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
        torch.testing.assert_close(torch.cat(parts, 1), full, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_single_tokens_are_part_of_a_text_like_any_others():
    """Three that come one by one spell a subject together; the next turn asks about it."""
    model = model_of()
    subject, cache = PROMPTS[0][2:5], DynamicCache(config=model.config)
    turns = [[210, 211, 212], subject[:1], subject[1:2], subject[2:], [213, 214]]
    parts = []
    with watched(model) as acting:
        for turn in turns:
            parts.append(model(input_ids=torch.tensor([turn]), past_key_values=cache).logits)
    assert acting == [[-1] * 5 + [0] * 3]
    whole = expected_logits(model, sum(turns, []), [[(0, 5, None)]])
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_generate_asks_about_a_subject_that_an_answer_has_named():
    model, ids = model_of(), torch.tensor([[210, 211, 212, *PROMPTS[0][2:5], 213]])
    cache = DynamicCache(config=model.config)
    generate(model, ids[:, :3], past_key_values=cache, max_new_tokens=1, min_new_tokens=1)
    for column in range(3, 6):  # decoded, so to speak
        model(input_ids=ids[:, column : column + 1], past_key_values=cache)
    with watched(model) as acting:
        generate(model, ids, past_key_values=cache, max_new_tokens=2, min_new_tokens=2)
    assert acting[0][6:] == [0, 0]


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


def test_what_is_imposed_ends_with_the_block_and_holds_for_one_model_only():
    model, other = model_of(), model_of()
    routed, plain = logits(model, PROMPTS), logits(tiny(), PROMPTS)
    ones = torch.ones(4, 1)
    swapped = Acting.of(
        [(row, [5]) for row in range(4)], torch.tensor([[1], [0], [3], [2]]), ones, 6, 4, uses_open=False
    )
    for acting, expected in (({}, plain), ({"default": swapped}, logits(swapped_model(), PROMPTS))):
        with model.base_model.context.imposed(acting):
            assert torch.equal(logits(model, PROMPTS), expected)
            assert torch.equal(logits(other, PROMPTS), routed)
    assert torch.equal(logits(model, PROMPTS), routed)


def swapped_model():
    """As `model_of`, with the experts of the first two edits exchanged, and those of the last two."""
    model = model_of()
    anchors = model.base_model.layers_of()[0].lemoe_anchors["default"]
    anchors.expert = anchors.expert ^ 1
    return model


def test_a_failing_forward_pass_leaves_nothing_behind():
    model = model_of()
    with pytest.raises(TypeError):
        model(input_ids=torch.tensor(PROMPTS), no_such_argument=lambda: 0, position_ids="x")
    layer = model.base_model.layers_of()[0]
    x = torch.randn(4, 6, layer.in_features)
    assert model.base_model.context.acting("default") is None
    assert torch.equal(layer(x), layer.base_layer(x))


def test_a_cache_of_other_rows_is_an_error():
    model = model_of()
    with torch.no_grad():
        cache = model(input_ids=torch.tensor(PROMPTS), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="4 rows, and 3 go on"):
        logits(model, [[30]] * 3, past_key_values=cache)


def test_a_generation_without_a_cache_to_go_on_from_is_an_error():
    """As of a model whose cache is under a name that is not known: its second pass would be taken for another prompt."""
    model = model_of()
    context, root = model.base_model.context, model.base_model.model
    ids = torch.tensor(PROMPTS)
    with context.generation(root, (ids,), {}):
        root(input_ids=ids)
        with pytest.raises(ValueError, match="no cache is among"):
            root(input_ids=ids[:, -1:])


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


@torch.no_grad()
def test_a_cache_that_went_on_without_the_edits_is_refused_and_read_again_by_generate():
    """With another adapter active, or with all of them off: what went by then is not in the texts."""
    model = edited(layers_to_transform=[1])
    put_edits(model, PROMPTS, subjects=[SPAN] * 4)
    model.add_adapter("other", LEMoEConfig(relation_gate=False, expert_dtype="float32"))
    put_edits(model, prompts_of(2, seed=7), adapter_name="other")
    prompt, behind = PROMPTS[0], [214, 215]

    def begun() -> DynamicCache:
        cache = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([behind]), past_key_values=cache)
        with model.disable_adapter():
            model(input_ids=torch.tensor([prompt[:3]]), past_key_values=cache)
        return cache

    with pytest.raises(ValueError, match="has not seen with its edits"):
        model(input_ids=torch.tensor([prompt[3:]]), past_key_values=begun())
    whole = [*behind, *prompt]
    assert torch.equal(generate(model, whole, past_key_values=begun()), generate(model, whole))
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.tensor([behind]), past_key_values=cache)
    model.set_adapter("other")
    with pytest.raises(ValueError, match="has not seen with its edits"):
        model(input_ids=torch.tensor([prompt]), past_key_values=cache)
