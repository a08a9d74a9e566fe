"""One writer, many readers: whoever reads sees one version, and whoever fails leaves no trace."""

from __future__ import annotations

import inspect
import sys
import threading
from copy import deepcopy

import pytest
import torch

from facts import FACTS, UNRELATED, answers, editor_for, logits_of, targets
from lemoe_hf.routing.anchors import Anchor, Anchors
from lemoe_hf.routing.versions import copied
from tiny import PAD, adapter_state, assert_same


def generated(editor, prompts: list[str]) -> list[list[int]]:
    """Greedy tokens of each prompt, by plain calls of `generate`."""
    found = []
    for prompt in prompts:
        ids = torch.tensor([editor.tokenizer(prompt)["input_ids"]])
        text = editor.model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=PAD)
        found.append(text[0, ids.shape[1] :].tolist())
    return found


@pytest.mark.parametrize("config", [{}, {"edits_per_expert": 3, "expert_dim": 16}])
def test_threads_generate_while_another_edits_and_undoes(tokenizer, config):
    editor = editor_for(tokenizer, **config)
    editor.edit(FACTS[:2])
    prompts = [*(fact.prompt for fact in FACTS[:2]), UNRELATED[0]]
    expected, failures, done = generated(editor, prompts), [], threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                found = generated(editor, prompts)
                if found != expected:
                    failures.append(found)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(3):
            (edit,) = editor.edit(FACTS[3]).ids
            editor.edit(FACTS[4])
            editor.undo(edit)
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert answers(editor, [*FACTS[:2], FACTS[4]]) == targets([*FACTS[:2], FACTS[4]])


def test_a_call_of_generate_goes_on_with_what_it_began_with(tokenizer):
    """An edit that is undone, or another that is made, in the middle of it does not change what it says."""
    editor = editor_for(tokenizer)
    first, second = editor.edit(FACTS[:2]).ids
    prompt = FACTS[1].prompt
    (expected,) = generated(editor, [prompt])
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    steps = []

    def change(input_ids, scores):
        steps.append(input_ids.shape[1])
        if len(steps) == 2:
            editor.undo(first)  # experts behind it move up
        if len(steps) == 3:
            editor.undo(second)
        return scores

    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD, "logits_processor": [change]}
    assert editor.model.generate(input_ids=ids, **options)[0, ids.shape[1] :].tolist() == expected
    assert editor.edits() == []


def test_a_text_that_is_continued_step_by_step_finds_its_edit_where_it_is_now(tokenizer):
    """Without a call of `generate` around them, passes see what is there: the edit in its new place, or no edit."""
    editor = editor_for(tokenizer)
    first, second = editor.edit(FACTS[:2]).ids
    prompt = FACTS[1].prompt
    (expected,) = generated(editor, [prompt])
    with editor.model.disable_adapter():
        (base,) = generated(editor, [prompt])

    def step(output):
        token = output.logits[:, -1:].argmax(-1)
        return token.item(), editor.model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)

    with torch.no_grad():
        ids = tokenizer(prompt)["input_ids"]
        output = editor.model(input_ids=torch.tensor([ids]), use_cache=True)
        said, output = step(output)
        assert said == expected[0] != base[0]
        editor.undo(first)
        for place in range(1, 5):  # all of the target
            said, output = step(output)
            assert said == expected[place]
        assert expected[1:5] != base[1:5]


def kept_state(editor) -> dict[str, torch.Tensor]:
    """All but the stamp, which remembers that an identifier was given."""
    return {name: tensor for name, tensor in adapter_state(editor.model).items() if "stamp" not in name}


def interrupted_at(number: int, call) -> bool:
    """Call a function, with an interrupt where the nth function of ours is entered; whether it came to that."""
    count = [0]

    def trace(frame, event, arg):
        code = frame.f_code
        # Within a context manager that is being left the interpreter has no place for what a tracer raises.
        if event == "call" and "lemoe_hf" in code.co_filename and not code.co_flags & inspect.CO_GENERATOR:
            count[0] += 1
            if count[0] == number:
                raise KeyboardInterrupt

    sys.settrace(trace)
    try:
        call()
        return False
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)


def test_an_interrupt_anywhere_in_a_commit_leaves_no_trace(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    tuner, state, sizes = editor.tuner, kept_state(editor), deepcopy(editor.config.to_dict())
    anchors = [Anchor((5, 6, 7), 2, 2, 1)]
    entry = {"id": 2, "expert": 2, "edit": FACTS[2].to_dict()}
    number, logits = 1, logits_of(editor, UNRELATED)
    while interrupted_at(number, lambda: tuner.commit(anchors, [entry], targets=[(2, (5,))])):
        if len(editor.edits()) == 3:  # it came when all was published
            editor.undo(2)
        assert_same(kept_state(editor), state)
        assert editor.config.to_dict() == sizes
        number += 1
    assert number > 40
    assert [each["id"] for each in editor.edits()] == [0, 1, 2]
    assert editor.config.num_experts == sizes["num_experts"] + 1
    editor.undo(2)
    assert_same(kept_state(editor), state)
    for one, other in zip(logits_of(editor, UNRELATED), logits, strict=True):
        assert torch.equal(one, other)


def test_memory_that_runs_out_in_a_commit_leaves_no_trace(tokenizer, monkeypatch):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    state, append, calls = adapter_state(editor.model), Anchors.append, []

    def runs_out(self, name, rows):
        calls.append(name)
        if name == "expert":
            raise torch.OutOfMemoryError("too large")
        append(self, name, rows)

    monkeypatch.setattr(Anchors, "append", runs_out)
    with pytest.raises(torch.OutOfMemoryError):
        editor.edit(FACTS[2])
    monkeypatch.undo()
    assert "expert" in calls
    assert_same(adapter_state(editor.model), state)
    editor.edit(FACTS[2])
    assert answers(editor, FACTS[:3]) == targets(FACTS[:3])


def test_without_an_edit_is_seen_by_its_own_thread_alone(tokenizer):
    editor = editor_for(tokenizer)
    editor.edit(FACTS[:2])
    seen = []
    with editor.without({0}):
        other = threading.Thread(target=lambda: seen.append(answers(editor, FACTS[:1])))
        other.start()
        other.join()
        assert answers(editor, FACTS[:1]) != targets(FACTS[:1])
    assert seen == [targets(FACTS[:1])]


def test_what_is_appended_is_not_seen_by_an_earlier_copy():
    """Rows go into room that was made ahead; one that another copy has filled is not written over."""
    anchors = Anchors()
    anchors.add([Anchor((1, 2), 0, 0, 1)])
    one, other = copied(anchors), copied(anchors)
    one.add([Anchor((3, 4), 1, 1, 1)])
    other.add([Anchor((5, 6, 7), 2, 2, 1)])
    assert (len(anchors), anchors.tokens.tolist()) == (1, [1, 2])
    assert one.tokens.tolist() == [1, 2, 3, 4]
    assert other.tokens.tolist() == [1, 2, 5, 6, 7]
    assert [match.edit for match in other.find(torch.tensor([[5, 6, 7, 1, 2]]))[0]] == [2, 0]
    assert [match.edit for match in one.find(torch.tensor([[3, 4]]))[0]] == [1]


@pytest.mark.parametrize("step", [1, 3, 7])
def test_an_index_that_has_grown_finds_what_one_made_at_once_does(step):
    generator = torch.Generator().manual_seed(0)
    spans = torch.randint(0, 40, (60, 3), generator=generator).tolist()
    made = [Anchor(tuple(span), i, i, 1, is_prompt=i % 2 == 0) for i, span in enumerate(spans)]
    grown, at_once = Anchors(), Anchors()
    grown.segments()
    for first in range(0, len(made), step):
        grown.add(made[first : first + step])
    at_once.add(made)
    assert len(grown.segments()) > 1 == len(at_once.segments())
    texts = torch.randint(0, 40, (20, 30), generator=generator)
    order = lambda match: (match.first, match.edit)  # noqa: E731
    for one, other in zip(grown.find(texts), at_once.find(texts), strict=True):
        assert sorted(one, key=order) == sorted(other, key=order)
    for edit in range(60):
        assert grown.prompts(edit) == at_once.prompts(edit)
        assert grown.expert_of(edit) == edit
    assert grown.expert_of(60) is None
