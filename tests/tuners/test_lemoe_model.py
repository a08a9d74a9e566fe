"""Nothing changes until it must, nothing is forgotten, undo is exact: the contracts of an adapter in one process."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import get_peft_model

from lemoe_hf import LEMoEConfig
from lemoe_hf.routing.anchors import Anchor
from tiny import (
    FAMILIES,
    PAD,
    adapter_state,
    assert_same,
    committed,
    edited,
    edits_state,
    logits,
    prompts_of,
    put_edits,
    tiny,
    unrelated,
)


SUBJECT = (2, 4)


# --------------------------------------------------------------------------------------- nothing changes until it must


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_adapter_leaves_every_bit(family):
    base = tiny(family)
    model = get_peft_model(tiny(family), LEMoEConfig())
    for ids in (unrelated(), prompts_of(5)):
        assert torch.equal(logits(model.eval(), ids), logits(base.eval(), ids))
        torch.manual_seed(0)  # of the dropout that some families have
        expected = logits(base.train(), ids)
        torch.manual_seed(0)
        assert torch.equal(logits(model.train(), ids), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_deferred_prompt_keeps_every_bit(family):
    """Alone, and in a batch next to rows that are routed."""
    base, model, prompts = tiny(family), edited(family), prompts_of(3, length=7)
    put_edits(model, prompts, subjects=[SUBJECT] * 3)
    deferred = unrelated(3)
    assert torch.equal(logits(model, deferred), logits(base, deferred))
    mixed = torch.cat([deferred, torch.tensor(prompts)])[[0, 3, 1, 4, 5, 2]]
    now, before = logits(model, mixed), logits(base, mixed)
    for row in (0, 2, 5):
        assert torch.equal(now[row], before[row])
    for row in (1, 3, 4):
        assert not torch.allclose(now[row, -1], before[row, -1], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_disabling_the_adapter_gives_the_base_model(family):
    base, model, prompts = tiny(family), edited(family), prompts_of(3)
    put_edits(model, prompts)
    routed = logits(model, prompts)
    with model.disable_adapter():
        assert torch.equal(logits(model, prompts), logits(base, prompts))
        generated = model.generate(input_ids=torch.tensor(prompts), max_new_tokens=4, do_sample=False)
    assert torch.equal(generated, base.generate(input_ids=torch.tensor(prompts), max_new_tokens=4, do_sample=False))
    assert torch.equal(logits(model, prompts), routed)


@pytest.mark.parametrize("family", FAMILIES)
def test_unloading_gives_back_the_base_model(family):
    base, model, prompts = tiny(family), edited(family), prompts_of(2)
    put_edits(model, prompts)
    unloaded = model.unload()
    assert torch.equal(logits(unloaded, prompts), logits(base, prompts))
    assert [name for name, _ in unloaded.named_modules()] == [name for name, _ in base.named_modules()]
    assert not unloaded._forward_pre_hooks
    assert not unloaded._forward_hooks


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_refuses_with_a_reason_and_changes_nothing(merge):
    model, prompts = edited(), prompts_of(2)
    put_edits(model, prompts)
    routed = logits(model, prompts)
    with pytest.raises(NotImplementedError, match="cannot be merged.*depends on the prompt.*unload"):
        getattr(model, merge)()
    assert torch.equal(logits(model, prompts), routed)


# ------------------------------------------------------------------------------------------------------- no forgetting


def later_edits(prompt: list[int]) -> dict[str, tuple[list[int], tuple[int, int]]]:
    """Prompts and subjects that do their best to take `prompt` over."""
    a, b, c, d, e, f = prompt
    return {
        "same subject": ([a, b + 1, c, d, e, f + 1], (2, 4)),
        "part of the subject": ([9, c, d], (1, 2)),
        "last token of the subject": ([9, 8, e], (2, 2)),
        "subject reaching over": ([c, d, e, f], (0, 3)),
        "prompt as subject": ([9, *prompt, 8], (1, 6)),
        "prompt within": ([c, d, e], (0, 2)),
        "prompt in front": ([*prompt, 250, 251], (2, 4)),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_later_edits_do_not_take_over_an_edits_own_prompt(family):
    """Answers and stored tensors stay bit for bit, whatever is edited later."""
    model, (prompt,) = edited(family), prompts_of(1)
    put_edits(model, [prompt], subjects=[SUBJECT])
    answer, stored = logits(model, prompt), committed(model)
    for seed, (other, span) in enumerate(later_edits(prompt).values(), start=1):
        put_edits(model, [other], subjects=[span], seed=seed)
        assert torch.equal(logits(model, prompt), answer)
    for name, tensor in committed(model).items():
        assert torch.equal(tensor[: len(stored[name])], stored[name]), name


def test_an_edit_after_a_thousand_others_answers_as_it_did():
    model, prompts = edited(), prompts_of(1000)
    put_edits(model, prompts[:1], subjects=[SUBJECT])
    answer = logits(model, prompts[0])
    put_edits(model, prompts[1:], subjects=[SUBJECT] * 999, seed=1)
    assert model.peft_config["default"].num_experts == 1000
    assert torch.equal(logits(model, prompts[0]), answer)
    assert torch.equal(logits(model, unrelated()), logits(tiny(), unrelated()))


def training_batch(prompts: list[list[int]], answer: int = 77) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[*prompt, answer] for prompt in prompts])
    labels = ids.clone()
    labels[:, :-1] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(model, batch, steps=30, **options) -> torch.Tensor:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **({"lr": 0.05} | options))
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
    model.eval()
    return loss.detach()


@pytest.mark.parametrize("family", FAMILIES)
def test_training_with_weight_decay_leaves_committed_experts_alone(family):
    model, prompts = edited(family), prompts_of(4)
    put_edits(model, prompts[:3])
    answers, stored = logits(model, prompts[:3]), committed(model)
    before = adapter_state(model)
    train(model, training_batch(prompts[3:]), steps=3, weight_decay=0.5)
    assert any(
        not torch.equal(tensor, adapter_state(model)[name]) for name, tensor in before.items() if "open" in name
    )
    for name, tensor in committed(model).items():
        assert torch.equal(tensor[: len(stored[name])], stored[name]), name
    assert torch.equal(logits(model, prompts[:3]), answers)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion_of_the_model_leaves_what_is_stored_alone(dtype):
    model, prompts = edited(), prompts_of(3)
    put_edits(model, prompts, subjects=[SUBJECT] * 3)
    answers, stored = logits(model, prompts), committed(model)
    model.to(dtype)
    assert logits(model, prompts).dtype == dtype
    assert_same(committed(model), stored)
    model.to(torch.float32)
    base = tiny().to(dtype).to(torch.float32)  # the base model itself has been rounded
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    assert not torch.allclose(answers[:, -1], logits(base, prompts)[:, -1], atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_a_base_model_of_half_precision_is_left_alone(dtype, autocast):
    base = tiny().to(dtype)
    model = get_peft_model(tiny().to(dtype), LEMoEConfig(), autocast_adapter_dtype=autocast).eval()
    put_edits(model, prompts_of(2))
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    assert logits(model, prompts_of(2)).dtype == dtype
    assert not torch.allclose(logits(model, prompts_of(2)), logits(base, prompts_of(2)), atol=1e-2)
    opened = model.base_model.layers_of()[0].lemoe_open["default"]
    assert opened.in_proj.dtype == (torch.float32 if autocast else dtype)


def test_freezing_is_by_position_and_survives_peft():
    """Only the open expert is ever trainable, whatever PEFT switches on and off."""
    model = edited()
    put_edits(model, prompts_of(3))

    def trainable():
        return {name.rsplit(".", 3)[1] for name, p in model.named_parameters() if p.requires_grad}

    assert trainable() == {"lemoe_open"}
    with model.disable_adapter():
        pass
    model.set_adapter("default")
    assert trainable() == {"lemoe_open"}
    assert not [name for name, _ in model.named_parameters() if "bank" in name or "anchor" in name]


# ---------------------------------------------------------------------------------------------------------------- undo


@pytest.mark.parametrize("family", FAMILIES)
def test_the_latest_edit_of_a_prompt_wins_and_undo_gives_back_the_earlier(family):
    base, model, prompts = tiny(family), edited(family), prompts_of(1)
    answers, edits = [logits(base, prompts)], []
    for seed in range(3):
        edits += put_edits(model, prompts, subjects=[SUBJECT], seed=seed)
        answers.append(logits(model, prompts))
        assert not torch.allclose(answers[-1][:, -1], answers[-2][:, -1], atol=1e-2)
    for edit, answer in zip(reversed(edits), reversed(answers[:-1]), strict=True):
        model.base_model.remove_edit(edit)
        assert torch.equal(logits(model, prompts), answer)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("which", [0, 2, 4])
def test_undo_leaves_every_other_output_bit_identical(family, which):
    base, model, prompts = tiny(family), edited(family), prompts_of(5)
    edits = put_edits(model, prompts, subjects=[SUBJECT] * 5)
    before = logits(model, prompts)
    removed = model.base_model.remove_edit(edits[which])
    assert removed["id"] == edits[which]
    after = logits(model, prompts)
    others = [row for row in range(5) if row != which]
    assert torch.equal(after[others], before[others])
    assert torch.equal(after[which], logits(base, prompts)[which])
    assert [entry["id"] for entry in model.base_model.ledger()] == [edits[row] for row in others]
    assert model.peft_config["default"].num_experts == 4


def test_undo_of_the_last_edit_restores_the_whole_state():
    model = edited()
    empty = edits_state(model), copy.deepcopy(model.peft_config["default"])
    edits = put_edits(model, prompts_of(3), subjects=[SUBJECT] * 3)
    state, config = edits_state(model), copy.deepcopy(model.peft_config["default"])
    (last,) = put_edits(model, [[9, 9, 9]], seed=5)
    model.base_model.remove_edit(last)
    assert_same(edits_state(model), state)
    assert model.peft_config["default"] == config
    for edit in edits:
        model.base_model.remove_edit(edit)
    assert_same(edits_state(model), empty[0])
    assert model.peft_config["default"] == empty[1]
    assert put_edits(model, [[9, 9, 9]]) == [4]  # no identifier is given twice


def test_undo_of_an_edit_that_shares_its_expert_keeps_the_expert():
    model, (prompt,) = edited(), prompts_of(1)
    put_edits(model, [prompt])
    model.base_model.store([Anchor((5, 6), 7, 0, 1, is_prompt=True)], [{"id": 7, "expert": 0, "edit": {}}])
    answer = logits(model, prompt)
    model.base_model.remove_edit(7)
    assert model.peft_config["default"].num_experts == 1
    assert torch.equal(logits(model, prompt), answer)


def test_undo_of_an_unknown_edit_says_which_there_are():
    model = edited()
    put_edits(model, prompts_of(2))
    with pytest.raises(KeyError, match=r"no edit 9; the ledger has \[0, 1\]"):
        model.base_model.remove_edit(9)


# ------------------------------------------------------------------------------------------ training without an editor


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_training_loop_puts_its_prompts_in_scope(family):
    """As with LoRA: nothing of ours but the model, before and after the commit."""
    base, model, prompts = tiny(family), edited(family), prompts_of(1)
    batch = training_batch(prompts)
    first = model(**batch).loss.detach()
    assert train(model, batch, steps=60) < 0.5 * first
    answer = logits(model, prompts)
    assert answer[0, -1].argmax() == 77
    model.base_model.commit()
    assert torch.equal(logits(model, prompts), answer)
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    assert model.base_model.ledger() == [{"id": 0, "expert": 0, "prompt_ids": prompts[0], "target_ids": [77]}]
    train(model, training_batch([[30, 31, 32, 33]]), steps=3)
    assert torch.equal(logits(model, prompts), answer)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_trainable_parameter_gets_a_gradient(family):
    model = edited(family).train()
    for ids in (unrelated(), torch.tensor(prompts_of(2))):
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_padding_of_a_training_batch_is_no_part_of_the_prompt():
    model, (prompt,) = edited().train(), prompts_of(1)
    for row in ([PAD, PAD, *prompt, 77], [*prompt, 77, PAD, PAD]):
        ids = torch.tensor([row])
        mask = (ids != PAD).long()
        model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(ids != 77, -100))
    assert [entry["prompt_ids"] for entry in model.base_model.ledger()] == [prompt]


def test_a_prompt_trained_again_after_a_commit_is_answered_by_the_later_expert():
    model, prompts = edited(), prompts_of(1)
    for answer in (77, 88):
        train(model, training_batch(prompts, answer))
        model.base_model.commit()
        assert logits(model, prompts)[0, -1].argmax() == answer
    model.base_model.remove_edit(1)
    assert logits(model, prompts)[0, -1].argmax() == 77


def test_the_token_before_a_text_is_no_part_of_the_prompt():
    """An editor stores prompts without it, and a prompt may stand in the middle of a conversation."""
    model, (prompt,) = edited(), prompts_of(1)
    bos = model.config.bos_token_id
    train(model, training_batch([[bos, *prompt]]))
    assert model.base_model.ledger()[0]["prompt_ids"] == prompt
    assert logits(model, [bos, *prompt])[0, -1].argmax() == 77
    assert not torch.equal(logits(model, prompt), logits(tiny(), prompt))


def test_committing_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to commit.*'default'"):
        edited().base_model.commit()


def test_evaluation_and_inference_leave_no_anchors():
    model, batch = edited(), training_batch(prompts_of(1))
    model(**batch)
    model.train()
    with torch.no_grad():
        model(**batch)
    assert model.base_model.ledger() == []


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_forward_passes_before_one_backward_under_checkpointing(family, reentrant):
    """As in preference training: the recomputed block must see the routes of its own forward pass."""

    def gradients(checkpointing):
        model, prompts = edited(family, init_weights=False), prompts_of(4)
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        model.train()
        torch.manual_seed(0)  # some families have dropout by default
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(getattr(module, "dropout", None), float):
                module.dropout = 0.0
        batches = training_batch(prompts[:2]), training_batch([prompt[:3] for prompt in prompts[2:]], answer=88)
        losses = [model(**batch).loss for batch in batches]
        (losses[0] - 0.3 * losses[1]).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    expected = gradients(False)
    assert any(gradient.abs().max() > 1e-3 for gradient in expected.values())
    for name, gradient in gradients(True).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- several adapters


def test_several_adapters_share_a_model():
    base, model, prompts = tiny(), edited(), prompts_of(2)
    put_edits(model, prompts[:1])
    first = logits(model, prompts)
    model.add_adapter("other", LEMoEConfig(expert="ffn", expert_dim=3))
    assert torch.equal(logits(model, prompts), first)
    model.set_adapter("other")
    assert torch.equal(logits(model, prompts), logits(base, prompts))
    put_edits(model, prompts[1:], seed=3)
    second = logits(model, prompts)
    assert torch.equal(second[0], logits(base, prompts)[0])
    assert not torch.equal(second[1], logits(base, prompts)[1])
    model.set_adapter("default")
    assert torch.equal(logits(model, prompts), first)
    model.delete_adapter("default")
    model.set_adapter("other")
    assert torch.equal(logits(model, prompts), second)
    assert not [name for name in model.state_dict() if ".default." in name]


def test_an_adapter_at_another_layer():
    model, prompts = edited(), prompts_of(1)
    put_edits(model, prompts)
    first = logits(model, prompts)
    model.add_adapter("early", LEMoEConfig(layers_to_transform=[1]))
    model.set_adapter("early")
    put_edits(model, prompts, seed=4)
    assert not torch.allclose(logits(model, prompts), first, atol=1e-2)
    model.set_adapter("default")
    assert torch.equal(logits(model, prompts), first)


def test_an_adapter_of_several_layers():
    """The first of them holds the anchors; all of them act, and an undo takes the expert out of each."""
    base, model, prompts = tiny(), edited(layers_to_transform=[1, 3]), prompts_of(3)
    edits = put_edits(model, prompts)
    assert [len(layer.lemoe_bank["default"]) for layer in model.base_model.layers_of()] == [3, 3]
    before = logits(model, prompts)
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    model.base_model.remove_edit(edits[1])
    after = logits(model, prompts)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert torch.equal(after[1], logits(base, prompts)[1])


def test_an_unknown_adapter_is_named():
    with pytest.raises(ValueError, match="no adapter 'x'; the model has default"):
        edited().base_model.ledger("x")


# -------------------------------------------------------------------------------------------------------------- copies


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle])
@pytest.mark.parametrize("family", FAMILIES)
def test_copies_are_whole_and_independent(family, duplicate):
    model, prompts = edited(family), prompts_of(3)
    put_edits(model, prompts[:2])
    other = duplicate(model)
    assert torch.equal(logits(other, prompts), logits(model, prompts))
    before = logits(model, prompts)
    put_edits(other, prompts[2:], seed=7)
    assert not torch.equal(logits(other, prompts[2]), before[2:])
    assert torch.equal(logits(model, prompts), before)


def test_undo_refuses_where_every_prompt_is_routed():
    model = edited("llama", routing="kv_anchor", deferral=False)
    put_edits(model, prompts_of(2))
    with pytest.raises(ValueError, match="deferral=False"):
        model.remove_edit(0)


def test_everything_is_put_on_the_device_of_the_base_model():
    """`meta` stands for any device that is not the CPU: a tensor made elsewhere would not go with it."""
    model = get_peft_model(tiny().to("meta"), LEMoEConfig())
    stored = [tensor for name, tensor in [*model.named_parameters(), *model.named_buffers()] if "lemoe_" in name]
    assert len(stored) == 40
    assert all(tensor.device.type == "meta" for tensor in stored)
    with torch.no_grad():  # nothing acts, and no token need be read
        logits = model(input_ids=torch.tensor([[5, 6, 7]], device="meta")).logits
    assert logits.device.type == "meta"
