"""Continuous batching says what `generate` says of each prompt by itself, however requests share passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.generation.continuous_batching import ContinuousBatchingManager
from transformers.generation.continuous_batching.requests import RequestState

from facts import FACTS, UNRELATED, editor_for, few_relations
from lemoe_hf import LEMoEConfig
from tiny import EOS, PAD, put_edits, tiny


NUM_TOKENS = 12
LEAD = "Anna Berg plays the violin in the city of Aldona."
PROMPTS = {
    "own prompts": [fact.prompt for fact in FACTS],
    "unrelated": UNRELATED,
    "two subjects": [
        f"{FACTS[0].prompt} {FACTS[3].prompt}",
        f"{FACTS[3].prompt} it. {FACTS[2].prompt}",
        f"Zembla is nice. {UNRELATED[0]} {FACTS[4].prompt}",
    ],
    "begin alike": [
        FACTS[0].prompt,
        f"{FACTS[0].prompt} Answer:",
        f"{FACTS[0].prompt} {UNRELATED[0]}",
        f"{FACTS[0].prompt} Yemen. {FACTS[1].prompt}",
        *(f"{LEAD} {prompt}" for prompt in (FACTS[4].prompt, FACTS[5].prompt, UNRELATED[1])),
    ],
}
ALL = [prompt for prompts in PROMPTS.values() for prompt in prompts]
# Blocks that hold some requests at a time; or so few that they grow into each other, and some are put off.
ROOMY = {"page_size": 16, "num_blocks": 64, "max_batch_tokens": 256}
TIGHT = {"page_size": 16, "num_blocks": 6, "max_batch_tokens": 64, "safety_margin": 0.0}
CHUNKS = {"page_size": 16, "num_blocks": 24, "max_batch_tokens": 10}


@pytest.fixture(scope="module", params=[False, True], ids=["by subject", "by question"])
def model(request, tokenizer, tmp_path_factory) -> PeftModel:
    with few_relations(str(tmp_path_factory.mktemp("relations"))):
        editor = editor_for(tokenizer, relation_gate=request.param)
        editor.edit(FACTS)
    return editor.model.eval()


def settings(**options) -> GenerationConfig:
    return GenerationConfig(
        **({"max_new_tokens": NUM_TOKENS, "do_sample": False, "eos_token_id": EOS, "pad_token_id": PAD} | options)
    )


def tokens_of(tokenizer, prompts: list[str]) -> list[list[int]]:
    return tokenizer(prompts)["input_ids"]


@torch.no_grad()
def one_by_one(model: PeftModel | PreTrainedModel, ids: list[list[int]]) -> list[list[int]]:
    return [
        model.generate(input_ids=torch.tensor([tokens]), generation_config=settings())[0, len(tokens) :].tolist()
        for tokens in ids
    ]


@torch.no_grad()
def batched(model, ids: list[list[int]], options: dict = ROOMY, **generation) -> list[list[int]]:
    """In the order of the prompts."""
    output = model.generate_batch(
        ids,
        generation_config=settings(**generation),
        continuous_batching_config=ContinuousBatchingConfig(**options),
    )
    assert [each.error for each in output.values()] == [None] * len(output)
    return [each.generated_tokens for each in output.values()]


@contextmanager
def running(model, options: dict = ROOMY) -> Iterator[ContinuousBatchingManager]:
    manager = model.init_continuous_batching(
        generation_config=settings(), continuous_batching_config=ContinuousBatchingConfig(**options)
    )
    manager.start()
    try:
        yield manager
    finally:
        manager.stop(block=True, timeout=10)
        manager.destroy()


def finished(manager: ContinuousBatchingManager, num: int) -> dict:
    """The outputs of the next requests that are over."""
    outputs = {}
    while len(outputs) < num:
        output = manager.get_result(timeout=10)
        assert output is not None, "no request has ended within 10 seconds"
        if output.is_finished():
            outputs[output.request_id] = output
    return outputs


@pytest.mark.parametrize("prompts", PROMPTS.values(), ids=PROMPTS)
def test_a_batch_says_what_each_prompt_does_by_itself(model, tokenizer, prompts):
    ids = tokens_of(tokenizer, prompts)
    assert batched(model, ids) == one_by_one(model, ids)


def test_edits_have_a_say_in_a_batch_and_only_in_what_they_are_asked(model, tokenizer):
    ids = tokens_of(tokenizer, ALL)
    answers = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in batched(model, ids)]
    assert [answer.strip().startswith(fact.target_new) for fact, answer in zip(FACTS, answers, strict=False)] == [
        True
    ] * len(FACTS)
    with model.disable_adapter():
        base = batched(model, ids)
        assert base == one_by_one(model, ids)
    unrelated = slice(len(FACTS), len(FACTS) + len(UNRELATED))
    assert [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in base[unrelated]] == answers[unrelated]


@pytest.fixture
def put_off(monkeypatch) -> list[RequestState]:
    """Requests that come again as new ones, since there was no room for them."""
    requests, again = [], RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        RequestState,
        "create_equivalent_initial_request",
        lambda request: requests.append(again(request)) or requests[-1],
    )
    return requests


@pytest.mark.parametrize("num_blocks", [5, 6, 7])
def test_requests_that_are_put_off_go_on_where_they_were(model, tokenizer, put_off, num_blocks):
    """And what they have said meanwhile is no part of their prompt."""
    ids = tokens_of(tokenizer, [prompt for prompt in ALL for _ in range(2)])
    assert batched(model, ids, TIGHT | {"num_blocks": num_blocks}) == one_by_one(model, ids)
    assert sum(len(request.initial_tokens) > request._true_initial_tokens > 0 for request in put_off) > 2


def test_passes_that_go_by_with_the_edits_off_are_known_afterwards(model, tokenizer):
    """A request whose edits are switched off for a while goes on with the text that it has by then."""
    context, passes = model.base_model.context, []

    def begun(root, inputs):
        with model.disable_adapter() if len(passes) in (2, 3) else nullcontext():
            passes.append(type(context)._begun(context, root, inputs))
        routed = passes[-1].passes.get("default")
        for piece, text in zip(routed.batch.pieces, routed.batch.texts, strict=True) if routed else ():
            request = piece.request
            assert text.ids == (request.initial_tokens + request.generated_tokens)[: request.position_offset]
        return passes[-1]

    context._begun = begun
    try:
        batched(model, tokens_of(tokenizer, [FACTS[0].prompt, UNRELATED[0]]))
    finally:
        del context._begun
    assert [bool(running.passes) for running in passes[:6]] == [True, True, False, False, True, True]


def test_prompts_that_are_read_in_parts(model, tokenizer):
    """As their passes hold fewer tokens than a prompt."""
    ids = tokens_of(tokenizer, ALL)
    assert max(map(len, ids)) > 5 * CHUNKS["max_batch_tokens"]
    assert batched(model, ids, CHUNKS) == one_by_one(model, ids)


def test_blocks_are_not_shared_even_where_that_is_asked_for(model, tokenizer):
    """Of prompts of which one is the beginning of the other, or that are the same."""
    first, *others = tokens_of(tokenizer, PROMPTS["begin alike"])
    ids = [first, first, *others, first]
    with running(model, ROOMY | {"allow_block_sharing": True}) as manager:
        outputs = {}
        for i, tokens in enumerate(ids):  # each is there when the next one comes
            manager.add_request(tokens, request_id=str(i))
            outputs |= finished(manager, 1)
        assert not manager.batch_processor.cache.use_prefix_sharing
    assert [outputs[str(i)].generated_tokens for i in range(len(ids))] == one_by_one(model, ids)


@pytest.mark.parametrize("options", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_requests_join_while_others_run(model, tokenizer, options):
    ids = tokens_of(tokenizer, ALL)
    outputs = {}
    with running(model, options) as manager:
        for i, tokens in enumerate(ids):
            manager.add_request(tokens, request_id=str(i), streaming=i % 3 == 0)
            if i % 3 == 0:
                output = manager.get_result(timeout=10)  # it has begun to speak, or another one has ended
                assert output is not None
                outputs |= {output.request_id: output} if output.is_finished() else {}
        outputs |= finished(manager, len(ids) - len(outputs))
    assert [outputs[str(i)].error for i in range(len(ids))] == [None] * len(ids)
    assert [outputs[str(i)].generated_tokens for i in range(len(ids))] == one_by_one(model, ids)


@pytest.mark.parametrize("options", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_requests_that_are_forked_go_on_alone(model, tokenizer, options, monkeypatch):
    """Here they say the same, which is the likeliest; each is one of its own, and knows what has been said."""
    forked, own = [], RequestState.fork
    monkeypatch.setattr(RequestState, "fork", lambda request, name: forked.append(own(request, name)) or forked[-1])
    ids = tokens_of(tokenizer, [*PROMPTS["own prompts"], *PROMPTS["unrelated"]])
    found = batched(model, ids, options, do_sample=True, top_k=1, num_return_sequences=3)
    assert found == [answer for answer in one_by_one(model, ids) for _ in range(3)]
    assert len(forked) == 2 * len(ids) if options is ROOMY else 0 < len(forked) < 2 * len(ids)


def test_an_engine_that_was_started_before_the_adapter_is_refused(tokenizer):
    """It shares blocks, or which requests it batches cannot be told."""
    base, prompt = tiny(), [10, 11, 12, 13]
    config = ContinuousBatchingConfig(**ROOMY)
    manager = base.init_continuous_batching(generation_config=settings(), continuous_batching_config=config)
    model = get_peft_model(base, LEMoEConfig(expert_dtype="float32", relation_gate=False)).eval()
    put_edits(model, [prompt])
    manager.start()
    try:
        manager.add_request(prompt)
        (output,) = finished(manager, 1).values()
    finally:
        manager.stop(block=True, timeout=10)
        manager.destroy()
    assert "which requests it holds cannot be told" in output.error
    assert not output.generated_tokens


@torch.no_grad()
def test_an_engine_that_was_kept_from_before_the_adapter_is_refused_until_it_is_destroyed():
    base, prompt = tiny(), [10, 11, 12, 13]
    config = ContinuousBatchingConfig(**ROOMY)
    options = {"generation_config": settings(), "continuous_batching_config": config, "persistent_manager": True}
    base.generate_batch([prompt], **options)
    model = get_peft_model(base, LEMoEConfig(expert_dtype="float32", relation_gate=False)).eval()
    put_edits(model, [prompt])
    (output,) = model.generate_batch([prompt], **options).values()
    assert "destroy_cached_continuous_batching_manager" in output.error
    assert not output.generated_tokens
    base.destroy_cached_continuous_batching_manager()
    expected = one_by_one(model, [prompt])
    assert batched(model, [prompt]) == expected
    with model.disable_adapter():
        assert one_by_one(model, [prompt]) != expected


def test_without_edits_any_engine_will_do(tokenizer):
    """Nothing has to be told of its requests; and an adapter that is taken off leaves none of its own behind."""
    base, ids = tiny(), tokens_of(tokenizer, UNRELATED)
    expected = one_by_one(base, ids)
    model = get_peft_model(base, LEMoEConfig())
    assert batched(model, ids) == expected
    assert "init_continuous_batching" in vars(base)
    unloaded = model.unload()
    assert "init_continuous_batching" not in vars(unloaded)
    assert batched(unloaded, ids) == expected
