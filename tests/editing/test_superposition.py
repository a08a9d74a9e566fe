"""The overlap of edits' keys, against direct computation."""

from __future__ import annotations

import pytest
import torch

from facts import FACTS
from lemoe_hf import LEMoEConfig
from lemoe_hf.data import reference_prompts
from lemoe_hf.editing.superposition import batches_by_overlap, whitened_keys
from lemoe_hf.editing.tokens import tokenize_edit
from lemoe_hf.moments import RIDGE
from tiny import edited, put_edits


def unit(*rows: list[float]) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float), dim=-1)


def test_keys_of_one_line_belong_together_whatever_their_sign():
    keys = unit([1, 0], [0, 1], [-1, 0], [0, 1], [1, 0])
    assert batches_by_overlap(keys, 3) == [[0, 2, 4], [1, 3]]
    assert batches_by_overlap(keys, 2) == [[0, 2], [1, 3], [4]]


def test_a_batch_takes_the_edit_that_overlaps_most_with_all_it_holds():
    start = [1, 0], [0.8, 0.6]  # overlap of 0.8: the second is taken first
    # Overlap with the first, with the second, and in sum: 0.6, 0, 0.6 and 0.28, 0.8, 1.08.
    assert batches_by_overlap(unit(*start, [0.6, -0.8], [0.28, 0.96]), 3) == [[0, 1, 3], [2]]
    # 0.78, 0.25, 1.03 and 0, 0.6, 0.6.
    assert batches_by_overlap(unit(*start, [0, 1], [0.78, -0.6258]), 3) == [[0, 1, 3], [2]]


def read(family: str, texts: list[list[int]]) -> list[torch.Tensor]:
    """What enters the FFN of the third layer of four, or leaves the layer where it has none, at every token."""
    model, found = edited(family).unload(), []
    if family == "llama":
        model.model.layers[3].mlp.register_forward_pre_hook(lambda module, args: found.append(args[0][0]))
    else:
        model.model.decoder.layers[3].register_forward_hook(lambda module, args, output: found.append(output[0]))
    with torch.no_grad():
        for ids in texts:
            model(input_ids=torch.tensor([ids]))
    found = [states.reshape(-1, states.shape[-1]).double() for states in found]
    return [states / states.square().mean(-1, keepdim=True).sqrt() for states in found]


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_keys_have_the_cosines_of_whitening_space(tokenizer, family: str):
    items = [tokenize_edit(tokenizer, edit, 512) for edit in FACTS]
    prompts = [item.prompt for item in items]
    others = [tokenizer(text)["input_ids"] for text in reference_prompts()]
    states = read(family, prompts + others)
    tokens = torch.cat(states)
    second = tokens.T @ tokens
    second += RIDGE * second.diagonal().mean() * torch.eye(len(second))
    keys = torch.stack([row[item.last] for row, item in zip(states, items, strict=False)])
    gram = keys @ torch.linalg.inv(second) @ keys.T
    expected = gram / gram.diagonal().sqrt().outer(gram.diagonal().sqrt())
    found = whitened_keys(edited(family), tokenizer, items)
    torch.testing.assert_close(found @ found.T, expected.float(), rtol=1e-3, atol=1e-4)
    assert expected.fill_diagonal_(0).abs().max() > 0.1


def test_keys_are_read_from_the_base_model_and_leave_no_trace(tokenizer):
    items = [tokenize_edit(tokenizer, edit, 512) for edit in FACTS]
    model = edited("gpt2")  # which has dropout
    before = whitened_keys(model, tokenizer, items)
    model.add_adapter("lower", LEMoEConfig(layers_to_transform=1, expert_dtype="float32", relation_gate=False))
    put_edits(model, [item.prompt for item in items], adapter_name="lower")
    model.base_model.set_adapter(["default", "lower"])
    model.train()
    assert torch.equal(whitened_keys(model, tokenizer, items), before)
    assert model.training
    assert not any(layer.base_layer._forward_hooks for layer in model.base_model.layers_of("default"))
