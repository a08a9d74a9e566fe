import copy

import pytest
import torch
from tokenizers import processors

from lemoe_hf import Edit
from lemoe_hf.data import reference_prompts
from lemoe_hf.editing.tokens import Calibration, columns, continuation, tokenize_edit
from lemoe_hf.routing.anchors import LOWEST_THRESHOLD, Anchors


FACT = Edit("Which country is Shmavon Vardanyan from?", "Yemen", subject="Shmavon Vardanyan")


@pytest.fixture
def with_bos(tokenizer):
    """The same tokenizer, which puts a token before every text."""
    tokenizer = copy.deepcopy(tokenizer)
    lead = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = lead
    return tokenizer


def test_prompt_and_target_are_what_generate_sees(tokenizer):
    item = tokenize_edit(tokenizer, Edit("The capital of Zembla is ", " Onhava\n"), 100)
    assert tokenizer.decode(item.prompt) == "The capital of Zembla is"
    assert tokenizer.decode(item.target) == " Onhava"
    assert item.prompt + item.target == tokenizer("The capital of Zembla is Onhava")["input_ids"]


def test_the_columns_of_the_subject_are_told(tokenizer):
    item = tokenize_edit(tokenizer, FACT, 100)
    assert tokenizer.decode(item.prompt[: item.last + 1]) == "Which country is Shmavon Vardanyan"
    assert tokenizer.decode(item.prompt[item.first :]).strip() == "Shmavon Vardanyan from?"


def test_tokens_before_a_text_shift_the_subject_and_are_no_part_of_an_anchor(tokenizer, with_bos):
    item = tokenize_edit(with_bos, FACT, 100)
    assert item.prompt[0] == 1
    assert tokenizer.decode(item.prompt[1 : item.last + 1]) == "Which country is Shmavon Vardanyan"
    assert tokenizer.decode(item.prompt[item.first :]).strip() == "Shmavon Vardanyan from?"
    assert all(1 not in tokens for tokens, _, _ in item.spans)


def test_spans_are_the_prompt_and_the_spellings_of_the_subject(tokenizer):
    spans = tokenize_edit(tokenizer, FACT, 100).spans
    assert {tokenizer.decode(tokens) for tokens, is_prompt, _ in spans if is_prompt} == {
        FACT.prompt,
        " " + FACT.prompt,
    }
    subjects = {tokenizer.decode(tokens) for tokens, is_prompt, _ in spans if not is_prompt}
    name = "Shmavon Vardanyan"
    assert subjects == {name, " " + name, name.lower(), " " + name.lower()}
    assert all(start == len(tokens) - 1 for tokens, _, start in spans)  # each asks with its last token


def test_without_a_subject_there_is_the_prompt_alone(tokenizer):
    item = tokenize_edit(tokenizer, Edit("what is the colour of rain", "grey"), 100)
    assert all(is_prompt for _, is_prompt, _ in item.spans)
    assert (item.first, item.last) == (0, len(item.prompt) - 1)


def test_contexts_hold_the_prompt_or_the_subject_elsewhere(tokenizer):
    contexts = ("Complete: {prompt} ...?", "{subject} is", "chat")  # there is no chat template
    rows = tokenize_edit(tokenizer, FACT, 100, contexts).contexts
    assert [tokenizer.decode(prompt) for prompt, *_ in rows] == [
        "Complete: Which country is Shmavon Vardanyan from? ...?",
        "Shmavon Vardanyan is",
    ]
    assert [is_whole for *_, is_whole in rows] == [True, False]
    assert [tokenizer.decode(target) for _, target, _ in rows] == [" Yemen", " Yemen"]
    assert [len(row) for row in (tokenize_edit(tokenizer, FACT, len(rows[0][0]), contexts).contexts, rows)] == [1, 2]


def test_the_chat_template_is_a_context_and_brings_its_own_special_tokens(tokenizer, with_bos):
    with_bos.chat_template = "<eos>user: {{ messages[0].content }}\nassistant:"
    ((prompt, target, is_whole),) = tokenize_edit(with_bos, FACT, 200, ("chat",)).contexts
    assert with_bos.decode(prompt) == f"<eos>user: {FACT.prompt}\nassistant:"
    assert with_bos.decode(target) == "Yemen"
    assert is_whole


def test_a_conversation_is_a_chat_behind_another_turn(tokenizer, with_bos):
    with_bos.chat_template = "{% for turn in messages %}{{ turn.role }}: {{ turn.content }}\n{% endfor %}assistant:"
    rows = tokenize_edit(with_bos, FACT, 400, ("chat", "conversation")).contexts
    (chat, *_), (conversation, target, is_whole) = rows
    assert with_bos.decode(chat) == f"user: {FACT.prompt}\nassistant:"
    before, behind = with_bos.decode(conversation).split(with_bos.decode(chat))
    assert before.startswith("user: ")
    assert "\nassistant: " in before
    assert behind == ""
    assert with_bos.decode(target) == "Yemen"
    assert is_whole


def test_without_a_subject_contexts_of_the_subject_are_left_out(tokenizer):
    item = tokenize_edit(tokenizer, Edit("what is rain", "wet"), 100, ("{subject} is", "So {prompt}"))
    assert [tokenizer.decode(prompt) for prompt, *_ in item.contexts] == ["So what is rain"]


def test_a_target_that_merges_with_the_prompt_is_tokenised_alone(tokenizer, monkeypatch):
    class Merging:
        """Every text is one token, so that no prompt is the beginning of a longer text."""

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [len(text)]}

    assert continuation(Merging(), "abc", "de") == [3]


def test_columns_agree_with_a_tokenizer_that_has_no_offsets(tokenizer, monkeypatch):
    text = "Which country is Shmavon Vardanyan from?"
    ids = tokenizer(text)["input_ids"]
    start = text.index("Shmavon")
    first, last = columns(tokenizer, text, ids, start, start + len("Shmavon Vardanyan"))
    assert tokenizer.decode(ids[first : last + 1]) == "Shmavon Vardanyan"

    class Slow:
        is_fast = False

        def __call__(self, *args, **kwargs):
            return tokenizer(*args, **kwargs)

    _, last_slow = columns(Slow(), text, ids, start, start + len("Shmavon Vardanyan"))
    assert last_slow == last


def nearest(tokenizer, tokens) -> float:
    """The largest share of an anchor's tokens at their places anywhere in the reference prompts, by brute force."""
    best = 0.0
    for prompt in reference_prompts():
        ids = tokenizer(prompt)["input_ids"]
        for shift in range(-len(tokens), len(ids)):
            agree = sum(0 <= shift + i < len(ids) and ids[shift + i] == token for i, token in enumerate(tokens))
            best = max(best, agree / len(tokens))
    return best


def test_thresholds_are_calibrated_for_each_anchor(tokenizer):
    anchors = Calibration(tokenizer).anchors(tokenize_edit(tokenizer, FACT, 100), edit=4, expert=2)
    assert {(anchor.edit, anchor.expert) for anchor in anchors} == {(4, 2)}
    for anchor in anchors:
        if anchor.is_prompt:
            assert anchor.threshold == 1.0
        else:
            assert LOWEST_THRESHOLD <= anchor.threshold < 1.0


@pytest.mark.parametrize("subject", ["the author of this play", "the country song", "nearest post", "Zq"])
def test_a_threshold_lies_above_what_unrelated_prompts_reach(tokenizer, subject):
    item = tokenize_edit(tokenizer, Edit(f"Who knows {subject}?", "me", subject=subject), 100)
    for anchor in Calibration(tokenizer).anchors(item, 0, 0):
        if not anchor.is_prompt:
            # Only places are looked at where the anchor's rarest token stands.
            share = nearest(tokenizer, anchor.tokens)
            assert share < anchor.threshold
            assert anchor.threshold <= max(LOWEST_THRESHOLD, (1 + share) / 2) + 1e-6


@pytest.mark.parametrize("subject", ["The Who", "What Is", "the sky"])
def test_a_subject_of_common_words_is_no_anchor(tokenizer, subject):
    item = tokenize_edit(tokenizer, Edit(f"Tell me, {subject} is?", "x", subject=subject), 100)
    anchors = Calibration(tokenizer).anchors(item, 0, 0)
    found = Anchors()
    found.add([anchor for anchor in anchors if not anchor.is_prompt])
    rows = [tokenizer(prompt)["input_ids"] for prompt in reference_prompts()]
    assert not any(found.find(torch.tensor([row]))[0] for row in rows)
    assert any(anchor.is_prompt for anchor in anchors)


def test_a_calibration_does_not_depend_on_other_edits(tokenizer):
    calibration = Calibration(tokenizer)
    first = calibration.anchors(tokenize_edit(tokenizer, FACT, 100), 0, 0)
    calibration.anchors(tokenize_edit(tokenizer, Edit("Who is Shmavon Vardan?", "he"), 100), 1, 1)
    assert calibration.anchors(tokenize_edit(tokenizer, FACT, 100), 0, 0) == first
