"""Routed once, from the prompt: `generate` in all its forms, and the answers of the package's own helper."""

from __future__ import annotations

import copy
import threading
from functools import partial

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, StaticCache

from lemoe_hf.generation import answers, continuations, pad_left
from tiny import (
    EOS,
    FAMILIES,
    PAD,
    adapter_state,
    assert_same,
    cache_of,
    decode_by_hand,
    edited,
    logits,
    on_cache,
    prompts_of,
    put_edits,
    tiny,
    unrelated,
)


SPAN = (2, 4)
NEW = 10
PROMPTS = prompts_of(8)
EVERY_FAMILY = [*FAMILIES, "mamba"]


def model_of(family="llama", prompts=PROMPTS, **config):
    model = edited(family, **config)
    put_edits(model, prompts, subjects=[SPAN] * len(prompts))
    return model


def generate(model, ids, **options) -> torch.Tensor:
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.dim() == 1 else ids
    defaults = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD}
    return model.generate(input_ids=ids, **(defaults | options))


@torch.no_grad()
def by_hand(model, ids, steps=NEW) -> torch.Tensor:
    """Greedy decoding by one full forward pass a token, in which the answer so far is marked as such."""
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.dim() == 1 else ids
    length = ids.shape[1]
    for _ in range(steps):
        labels = ids.clone()
        labels[:, :length] = -100
        scores = model(input_ids=ids, labels=labels).logits[:, -1]
        scores[:, model.config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], 1)
    return ids


# --------------------------------------------------------------------------------------------------- forms of generate


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_decoding_with_a_cache_without_and_by_hand_agree(family):
    """And differ from the base model on routed rows, and equal it on deferred ones."""
    model, base = model_of(family), tiny(family).requires_grad_(False)  # frozen convolutions take another kernel
    batch = torch.cat([torch.tensor(PROMPTS[:3]), unrelated(2, length=6)])
    cached = generate(model, batch)
    assert torch.equal(generate(model, batch, use_cache=False), cached)
    assert torch.equal(by_hand(model, batch), cached)
    plain = generate(base, batch)
    assert torch.equal(cached[3:], plain[3:])
    assert all(not torch.equal(now, then) for now, then in zip(cached[:3], plain[:3], strict=True))


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_cached_decoding_has_the_logits_of_a_full_forward_pass(family):
    model = model_of(family)
    output = generate(model, PROMPTS[:4], output_logits=True, return_dict_in_generate=True)
    full = logits(model, output.sequences)[:, 5:-1]
    torch.testing.assert_close(torch.stack(output.logits, 1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_batch_of_8_is_8_batches_of_1(family):
    model = model_of(family)
    batch = torch.tensor(PROMPTS[:5] + unrelated(3, length=6).tolist())
    together = generate(model, batch)
    assert torch.equal(together, torch.cat([generate(model, row) for row in batch]))


@pytest.mark.parametrize("family", FAMILIES)
def test_left_padding_changes_nothing(family):
    """Rows of different lengths, some routed and some deferred, give what each gives alone."""
    model = model_of(family)
    rows = [PROMPTS[0], [210, 211, *PROMPTS[1]], unrelated(1, length=3)[0].tolist(), [*PROMPTS[2], 220]]
    batch = pad_left(rows, PAD, torch.device("cpu"))
    together = model.generate(**batch, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False, pad_token_id=PAD)
    width = batch["input_ids"].shape[1]
    for row, output in zip(rows, together, strict=True):
        assert torch.equal(output[width:], generate(model, row)[0, len(row) :])


@pytest.mark.parametrize("family", FAMILIES)
def test_left_and_right_padding_agree(family):
    model = model_of(family)
    rows = [PROMPTS[0], [211, *PROMPTS[1], 220]]
    left = pad_left(rows, PAD, torch.device("cpu"))
    if family not in ("bloom", "opt"):  # they number positions by the mask, the others by the column
        left["position_ids"] = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
    right = torch.tensor([rows[0] + [PAD] * 2, rows[1]])
    one, two = logits(model, left.pop("input_ids"), **left), logits(model, right, attention_mask=(right != PAD).long())
    for row, actual in enumerate((one[0, 2:], two[0, :6])):
        torch.testing.assert_close(actual, logits(model, rows[0])[0], rtol=1e-4, atol=1e-4, msg=f"{row}")
    torch.testing.assert_close(one[1], two[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_sampling_depends_on_the_seed_and_not_on_the_cache(family):
    model = model_of(family)
    texts = []
    for seed, use_cache in ((0, True), (0, False), (1, True)):
        torch.manual_seed(seed)
        texts.append(generate(model, PROMPTS[:4], do_sample=True, top_k=50, use_cache=use_cache))
    assert torch.equal(texts[0], texts[1])
    assert not torch.equal(texts[0], texts[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_beams_follow_the_route_of_their_prompt(family):
    """The scores that beam search reports are those of a full forward pass over its texts."""
    model = model_of(family)
    batch = torch.tensor(PROMPTS[:2] + unrelated(1, length=6).tolist())
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.0}
    output = generate(model, batch, **options, output_scores=True, return_dict_in_generate=True)
    assert torch.equal(generate(model, batch, **options, use_cache=False), output.sequences)
    log_probs = logits(model, output.sequences)[:, 5:-1].log_softmax(-1)
    log_probs[..., model.config.eos_token_id] = -torch.inf
    chosen = log_probs.gather(2, output.sequences[:, 6:, None])[..., 0].sum(1)
    torch.testing.assert_close(output.sequences_scores, chosen, rtol=1e-3, atol=1e-3)
    plain = generate(tiny(family), batch, **options)
    assert torch.equal(output.sequences[4:], plain[4:])
    assert not torch.equal(output.sequences[:4], plain[:4])


@pytest.mark.parametrize("family", FAMILIES)
def test_return_sequences_follow_the_route_of_their_prompt(family):
    model = model_of(family)
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3, "output_logits": True, "return_dict_in_generate": True}
    output = generate(model, PROMPTS[:2], **options)
    assert len(output.sequences) == 6
    full = logits(model, output.sequences)[:, 5:-1]
    torch.testing.assert_close(torch.stack(output.logits, 1), full, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_cache_changes_nothing(family):
    model = model_of(family)
    batch = torch.tensor(PROMPTS[:2] + unrelated(1, length=6).tolist())
    static = generate(model, batch, cache_implementation="static", disable_compile=True)
    assert torch.equal(static, generate(model, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_chunked_prefill_changes_nothing(family):
    """The first chunk alone shows less than the subject."""
    model = model_of(family)
    batch = torch.tensor(PROMPTS[:3])
    for size in (1, 2, 4):
        assert torch.equal(generate(model, batch, prefill_chunk_size=size), generate(model, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_prompt_lookup_changes_nothing(family):
    model = model_of(family, [[*prompt, *prompt[1:4]] for prompt in PROMPTS])
    for prompt in PROMPTS[:3]:
        row = [*prompt, *prompt[1:4]]
        assert torch.equal(generate(model, row, prompt_lookup_num_tokens=3), generate(model, row))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_assistant_model_changes_nothing(family):
    """Whether it is the base model, or a model with edits of its own."""
    model, other = model_of(family), edited(family)
    put_edits(other, PROMPTS[3:], subjects=[SPAN] * 5, seed=3)
    for prompt in [*PROMPTS[:2], PROMPTS[4], unrelated(1)[0].tolist()]:
        expected = generate(model, prompt)
        assert torch.equal(generate(model, prompt, assistant_model=tiny(family)), expected)
        assert torch.equal(generate(model, prompt, assistant_model=other.base_model.model), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_are_routed_like_their_tokens(family):
    model = model_of(family)
    batch = torch.tensor(PROMPTS[:2] + unrelated(1, length=6).tolist())
    embeds = model.get_input_embeddings()(batch).detach()
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": PAD}
    generated = model.generate(inputs_embeds=embeds, attention_mask=torch.ones_like(batch), **options)
    assert torch.equal(generated, generate(model, batch)[:, 6:])
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, logits(model, batch))


def test_embeddings_of_no_token_are_deferred():
    """Such as a soft prompt, even one that is close to a token's embedding."""
    model, base = model_of(), tiny()
    embeds = model.get_input_embeddings()(torch.tensor(PROMPTS[:1])).detach() + 1e-3
    with torch.no_grad():
        assert torch.equal(model(inputs_embeds=embeds).logits, base(inputs_embeds=embeds).logits)


# ------------------------------------------------------------------------------- decoded tokens never change the route


def spelling(base, prompt, span) -> tuple[torch.nn.Module, list[int]]:
    """A model that answers `prompt` with tokens of which some are another edit's subject."""
    model = edited()
    put_edits(model, [prompt], subjects=[SPAN])
    text = generate(model, prompt)[0].tolist()
    return model, text[len(prompt) + span[0] : len(prompt) + span[1]]


def test_an_answer_that_spells_another_edits_subject_keeps_its_route():
    prompt = PROMPTS[0]
    model, subject = spelling(tiny(), prompt, (1, 4))
    before = generate(model, prompt)
    put_edits(model, [[15, *subject, 16]], subjects=[(1, 3)], seed=8)
    assert not torch.equal(logits(model, [17, *subject]), logits(tiny(), [17, *subject]))  # it would be found
    for options in ({}, {"use_cache": False}, {"num_beams": 1}, {"prompt_lookup_num_tokens": 2}):
        assert torch.equal(generate(model, prompt, **options), before)
    assert torch.equal(by_hand(model, prompt), before)


def test_a_deferred_prompt_whose_answer_spells_a_subject_stays_deferred():
    base = tiny()
    prompt = unrelated(1)[0].tolist()
    plain = generate(base, prompt)
    subject = plain[0, len(prompt) + 1 : len(prompt) + 4].tolist()
    model = edited()
    put_edits(model, [[15, *subject, 16]], subjects=[(1, 3)])
    for options in ({}, {"use_cache": False}, {"prompt_lookup_num_tokens": 2}):
        assert torch.equal(generate(model, prompt, **options), plain)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_take_no_part_in_routing(family):
    """A target that spells another edit's subject, or the edited prompt's own last token."""
    model, base = model_of(family), tiny(family)
    subject = PROMPTS[3][2:5]
    for prompt in (PROMPTS[0], unrelated(1)[0].tolist()):
        ids = torch.tensor([[*prompt, *subject, 9]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        known = logits(model, ids, labels=labels)
        torch.testing.assert_close(known[:, : len(prompt)], logits(model, prompt), rtol=1e-4, atol=1e-4)
        assert not torch.equal(known, logits(model, ids))
    assert torch.equal(known, logits(base, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_scoring_without_labels_gives_the_answer_the_same_logits(family):
    """Tools that score a text make one forward pass over prompt and answer."""
    model = model_of(family)
    for prompt in (PROMPTS[0], unrelated(1)[0].tolist()):
        ids = torch.tensor([[*prompt, 250, 251, 252]])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        assert torch.equal(logits(model, ids), logits(model, ids, labels=labels))


# ------------------------------------------------------------------------------------------------ caches of the caller


@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_turn_on_the_same_cache_equals_the_whole_conversation(family):
    """First about one edit, then about another: what was answered in the first is given to the second, as if it was typed."""
    model = model_of(family)
    first, second = PROMPTS[0], [230, *PROMPTS[1]]
    cache = DynamicCache(config=model.config)
    turn = generate(model, first, past_key_values=cache, return_dict_in_generate=True)
    conversation = [*turn.sequences[0].tolist(), *second]
    options = {"output_logits": True, "return_dict_in_generate": True}
    output = generate(model, conversation, past_key_values=cache, **options)
    whole = generate(model, conversation, **options)
    assert torch.equal(output.sequences, whole.sequences)
    torch.testing.assert_close(torch.stack(output.logits), torch.stack(whole.logits), rtol=1e-4, atol=1e-4)
    assert not torch.equal(output.sequences, generate(tiny(family), conversation))


@pytest.mark.parametrize(
    ("family", "size"), [*[(family, size) for family in FAMILIES for size in (6, 2)], ("mamba", 6)]
)
@torch.no_grad()
def test_a_manual_loop_on_a_cache_equals_generate(family, size):
    """The prompt at once, or in chunks that each show a part of the subject."""
    model = model_of(family)
    ids, cache = torch.tensor(PROMPTS[:3]), None
    for first in range(0, 6, size):
        output = model(input_ids=ids[:, first : first + size], use_cache=True, **on_cache(model, cache))
        cache = cache_of(output)
    ids = decode_by_hand(partial(model, use_cache=True, **on_cache(model, cache)), output, ids, NEW)
    assert torch.equal(ids, generate(model, PROMPTS[:3]))


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_cache_whose_rows_are_repeated_goes_on_for_each_of_them(family, width):
    """Word by word, or with a text behind it that completes a subject."""
    model = model_of(family)
    lead = torch.stack([torch.tensor(PROMPTS[0][:4]), unrelated(1, length=4)[0]])
    lead = lead if width > 1 else torch.cat([lead, torch.tensor([PROMPTS[0][4:5], [240]])], 1)
    cache = cache_of(model(input_ids=lead, use_cache=True))
    cache.batch_repeat_interleave(2)
    behind = torch.tensor([[*PROMPTS[0][4:], 250], [4, 251, 252], [*PROMPTS[0][4:], 253], [254, 4, 5]])[:, -width:]
    ids = torch.cat([lead.repeat_interleave(2, 0), behind], 1)
    actual = model(input_ids=behind, use_cache=True, **on_cache(model, cache)).logits
    torch.testing.assert_close(actual, logits(model, ids)[:, -width:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(actual[0], logits(tiny(family), ids)[0, -width:], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_two_generations_with_two_caches_do_not_disturb_each_other(family):
    """Interleaved, token by token: one routed, one deferred; and a plain forward pass in between."""
    model = model_of(family)
    texts = [torch.tensor(PROMPTS[:2]), unrelated(2, length=6)]
    caches = [None, None]
    for step in range(NEW):
        for i in range(2):
            new = texts[i] if step == 0 else texts[i][:, -1:]
            output = model(input_ids=new, use_cache=True, **on_cache(model, caches[i]))
            caches[i] = cache_of(output)
            scores = output.logits[:, -1]
            scores[:, model.config.eos_token_id] = -torch.inf
            texts[i] = torch.cat([texts[i], scores.argmax(-1, keepdim=True)], 1)
            logits(model, PROMPTS[5:7])
    assert torch.equal(texts[0], generate(model, PROMPTS[:2]))
    assert torch.equal(texts[1], generate(model, unrelated(2, length=6)))


def test_threads_that_generate_at_once_do_not_disturb_each_other():
    model = model_of()
    batches = [torch.tensor(PROMPTS[i : i + 1]) for i in range(3)] + [unrelated(1, length=6)]
    expected = [generate(model, batch, max_new_tokens=24, min_new_tokens=24) for batch in batches]
    results: dict[int, list[torch.Tensor]] = {i: [] for i in range(len(batches))}

    def work(i):
        for _ in range(4):
            results[i].append(generate(model, batches[i], max_new_tokens=24, min_new_tokens=24))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, expected_text in enumerate(expected):
        assert len(results[i]) == 4
        assert all(torch.equal(text, expected_text) for text in results[i])


@torch.no_grad()
def test_compiled_decoding_finds_its_route_on_a_static_cache():
    """One graph without breaks; the same compiled step serves routed and deferred rows."""
    model = model_of()
    root = model.base_model.model
    torch._dynamo.reset()
    step = torch.compile(root, fullgraph=True, backend="eager")
    for batch in (torch.tensor(PROMPTS[:2]), torch.tensor(PROMPTS[2:3] + unrelated(1, length=6).tolist())):
        cache = StaticCache(config=root.config, max_cache_len=32)
        output = root(input_ids=batch, **on_cache(root, cache))
        ids = decode_by_hand(partial(step, **on_cache(root, cache)), output, batch, NEW)
        assert torch.equal(ids, generate(model, batch))


# ------------------------------------------------------------------------------------------------------------- answers


def test_answers_come_in_order_and_within_their_bounds(tokenizer):
    model = edited()
    prompts = [
        "Who wrote the Silver Lake?",
        "Where?",
        "The mayor of Port Ellen is",
        "In which year did the bridge open?",
    ]
    model.train()
    together = answers(model, tokenizer, prompts, [6, 2, 4, 3], batch_size=3)
    assert model.training
    alone = [answers(model, tokenizer, [text], n)[0] for text, n in zip(prompts, [6, 2, 4, 3], strict=True)]
    assert together == alone
    longer = answers(model, tokenizer, prompts, 12)
    assert all(
        text.startswith(cut.rstrip("\ufffd")) and len(cut) < len(text)
        for cut, text in zip(together, longer, strict=True)
    )
    assert answers(model, tokenizer, []) == []


def test_tokens_are_continued_as_they_are(tokenizer):
    """What a chat template has rendered brings its special tokens along, and the answer is told without any."""
    model = edited()
    ids = [[EOS, *tokenizer("Where?")["input_ids"]], [EOS, *tokenizer("Who wrote the Silver Lake?")["input_ids"]]]
    found = continuations(model, tokenizer, ids, [3, 8])
    for prompt, tokens, bound in zip(ids, found, [3, 8], strict=True):
        output = model.generate(torch.tensor([prompt]), max_new_tokens=bound, do_sample=False)[0, len(prompt) :]
        assert tokens == [token for token in output.tolist() if token not in tokenizer.all_special_ids]
    texts = ["Where?", "Who wrote the Silver Lake?"]
    plain = continuations(model, tokenizer, tokenizer(texts)["input_ids"], [3, 8])
    assert answers(model, tokenizer, texts, [3, 8]) == [tokenizer.decode(tokens) for tokens in plain]
    assert plain != found
    assert continuations(model, tokenizer, []) == []


def test_pad_left_masks_the_padding():
    batch = pad_left([[5], [6, 7, 8]], PAD, torch.device("cpu"))
    assert batch["input_ids"].tolist() == [[PAD, PAD, 5], [6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1], [1, 1, 1]]


def test_generating_in_training_mode_learns_nothing():
    """A model that nobody has put into evaluation mode still answers, and takes no prompt for one to train on."""
    model = model_of("llama")
    expected = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, do_sample=False)
    before = adapter_state(model)
    model.train()
    got = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=4, do_sample=False)
    assert torch.equal(got, expected)
    assert_same(adapter_state(model), before)


def test_answering_leaves_every_module_in_its_mode(tokenizer):
    """`get_peft_model` leaves its wrapper in training mode and the base in evaluation mode."""
    model = model_of("llama")
    model.eval()
    model.training = True
    answers(model, tokenizer, ["Which country is Anna Berg from?"], 2)
    assert model.training
    assert not any(module.training for module in model.base_model.modules())


@pytest.mark.parametrize("on_adapter", [False, True])
def test_answers_are_greedy_whatever_the_model_brings_along(tokenizer, on_adapter):
    model = model_of()
    prompts = [tokenizer.decode(prompt) for prompt in PROMPTS[:3]]
    expected = answers(model, tokenizer, prompts)
    brought = GenerationConfig(
        do_sample=True,
        num_beams=2,
        num_return_sequences=2,
        repetition_penalty=1.5,
        eos_token_id=model.config.eos_token_id,
    )
    own = model.get_base_model().generation_config
    (model if on_adapter else model.get_base_model()).generation_config = brought
    assert answers(model, tokenizer, prompts) == expected
    assert model.generation_config is brought
    assert model.get_base_model().generation_config is (own if on_adapter else brought)


def test_answers_without_a_padding_token_say_what_to_do(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    with pytest.raises(ValueError, match="no padding token. Set one first"):
        answers(model_of(), bare, ["one"])
