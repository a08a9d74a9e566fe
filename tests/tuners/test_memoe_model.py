"""What acts, where, on texts about what; and what of it is kept: the contracts of a mixture in one process."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import PeftModel, get_peft_model

from lemoe_hf import LEMoEConfig, MEMoEConfig
from mixtures import gated, mixture, put_facts
from tiny import FAMILIES, HIDDEN, PAD, logits, prompts_of, put_edits, tiny, unrelated
from tiny import edited as lemoe


SUBJECT = (2, 4)


def embedded(model, tokens: list[int]) -> torch.Tensor:
    return model.get_input_embeddings()(torch.tensor(tokens)).mean(0)


def generated(model, ids, num: int = 5, **options) -> torch.Tensor:
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.dim() == 1 else ids
    options = {"do_sample": False, "min_new_tokens": num, "pad_token_id": PAD} | options
    options.setdefault("attention_mask", torch.ones_like(ids))
    return model.generate(input_ids=ids, max_new_tokens=num, **options)


# --------------------------------------------------------------------------------------- nothing changes until it must


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("config", [MEMoEConfig(), MEMoEConfig.paper()], ids=["default", "paper"])
def test_a_new_adapter_leaves_every_bit(family, config):
    base, model = tiny(family), get_peft_model(tiny(family), copy.deepcopy(config)).eval()
    for ids in (unrelated(), prompts_of(5)):
        assert torch.equal(logits(model, ids), logits(base, ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_asks_for_no_edit_keeps_every_bit(family):
    """Alone, and in a batch next to rows that are acted on."""
    base, model, prompts = tiny(family), mixture(family), prompts_of(3, length=7)
    put_facts(model, prompts, subjects=[SUBJECT] * 3)
    assert torch.equal(logits(model, unrelated(3)), logits(base, unrelated(3)))
    mixed = torch.cat([unrelated(3), torch.tensor(prompts)])[[0, 3, 1, 4, 5, 2]]
    now, before = logits(model, mixed), logits(base, mixed)
    for row in (0, 2, 5):
        assert torch.equal(now[row], before[row])
    for row in (1, 3, 4):
        assert torch.equal(now[row, :-1], before[row, :-1])
        assert not torch.allclose(now[row, -1], before[row, -1], atol=1e-2)


def test_without_deferral_it_acts_on_every_token_of_every_text():
    model = mixture(deferral=False)
    put_facts(model, prompts_of(1))
    now, base = logits(model, unrelated()), logits(tiny(), unrelated())
    assert (now - base).abs().amax(-1).min() > 1e-2


@pytest.mark.parametrize("deferral", [True, False])
def test_disabling_and_unloading_give_the_base_model(deferral):
    base, model, prompts = tiny(), mixture(deferral=deferral), prompts_of(3)
    put_facts(model, prompts)
    answer = logits(model, prompts)
    with model.disable_adapter():
        assert torch.equal(logits(model, prompts), logits(base, prompts))
        assert torch.equal(generated(model, prompts), generated(base, prompts))
    assert torch.equal(logits(model, prompts), answer)
    assert torch.equal(logits(model.unload(), prompts), logits(base, prompts))


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_refuses_with_a_reason(merge):
    with pytest.raises(NotImplementedError, match="MEMoE cannot be merged"):
        getattr(mixture(), merge)()


# ------------------------------------------------------------------------------------------------ what a text is about


def anchor_in(model, ids, **inputs) -> torch.Tensor:
    with gated(model) as seen:
        logits(model, ids, **inputs)
    return seen[0][0].anchors


def test_the_anchor_is_the_subject_where_an_edit_is_found_by_it():
    model, (prompt,) = mixture(), prompts_of(1)
    put_facts(model, [prompt], subjects=[SUBJECT])
    for text in ([9, 8, *prompt[2:5], 7], prompt):  # another wording, and the edit's own prompt
        torch.testing.assert_close(anchor_in(model, text)[0], embedded(model, prompt[2:5]))


def test_the_anchor_is_the_whole_prompt_where_nothing_is_named():
    model, (prompt,) = mixture(), prompts_of(1)
    put_facts(model, [prompt])
    torch.testing.assert_close(anchor_in(model, prompt)[0], embedded(model, prompt))
    model = mixture(deferral=False)
    put_facts(model, [prompt])
    text = unrelated(1)[0].tolist()
    torch.testing.assert_close(anchor_in(model, text)[0], embedded(model, text))


@pytest.mark.parametrize("deferral", [True, False])
def test_the_anchor_of_the_prompt_is_kept_in_all_steps_of_generate(deferral):
    model, prompts = mixture(deferral=deferral), prompts_of(2)
    put_facts(model, prompts, subjects=[SUBJECT] * 2)
    expected = torch.stack([embedded(model, prompt[2:5]) for prompt in prompts])
    with gated(model) as seen:
        generated(model, prompts, 4)
    assert len(seen) == 4
    for acting, _ in seen:
        torch.testing.assert_close(acting.anchors, expected)


@pytest.mark.parametrize("deferral", [True, False])
def test_beams_candidates_and_a_model_without_a_cache_keep_it_too(deferral):
    model, prompts = mixture(deferral=deferral), prompts_of(2)
    put_facts(model, prompts, subjects=[SUBJECT] * 2)
    expected = [embedded(model, prompt[2:5]) for prompt in prompts]
    for options in ({"num_beams": 3}, {"use_cache": False}, {"num_return_sequences": 2, "do_sample": True}):
        with gated(model) as seen:
            generated(model, prompts, 4, **options)
        for acting, _ in seen:
            times = len(acting.anchors) // 2
            torch.testing.assert_close(acting.anchors, torch.stack(expected).repeat_interleave(times, 0))


@pytest.mark.parametrize("deferral", [True, False])
def test_a_conversation_that_is_sent_again_is_read_again(deferral):
    """Turn by turn on one cache, and as a whole: the same tokens."""
    model, prompts = mixture(deferral=deferral), prompts_of(2)
    put_facts(model, prompts, subjects=[SUBJECT] * 2, targets=[[201], [202]])
    first = model.generate(
        input_ids=torch.tensor([prompts[0]]),
        attention_mask=torch.ones(1, 6),
        max_new_tokens=3,
        min_new_tokens=3,
        do_sample=False,
        return_dict_in_generate=True,
    )
    again = torch.cat([first.sequences, torch.tensor([[250, 251, *prompts[1]]])], 1)
    if deferral:  # what was published has one anchor for a text, and a longer prompt has another one
        on_cache = generated(model, again, 3, past_key_values=first.past_key_values)
        assert torch.equal(on_cache, generated(model, again, 3))
    with gated(model) as seen:
        generated(model, again, 3)
    named = prompts[1][2:5] if deferral else prompts[0][2:5] + prompts[1][2:5]
    for acting, _ in seen:
        torch.testing.assert_close(acting.anchors[0], embedded(model, named))


def test_a_cache_that_is_cropped_goes_back_with_its_texts():
    model, (prompt,) = mixture(), prompts_of(1)
    put_facts(model, [prompt], subjects=[SUBJECT])
    ids = torch.tensor([[*prompt, 230, 231]])
    with torch.no_grad():
        whole = model(input_ids=ids, use_cache=True)
        cache = whole.past_key_values
        cache.crop(-1)
        step = model(input_ids=ids[:, 7:], past_key_values=cache)
    torch.testing.assert_close(step.logits[:, -1], whole.logits[:, -1], atol=1e-4, rtol=1e-4)


def test_copies_go_on_by_themselves():
    model, prompts = mixture(), prompts_of(2)
    put_facts(model, prompts, subjects=[SUBJECT] * 2)
    answer = logits(model, prompts)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other, prompts), answer)
        other.base_model.remove_edit(0)
        assert not torch.equal(logits(other, prompts)[0], answer[0])
    assert torch.equal(logits(model, prompts), answer)


# -------------------------------------------------------------------------------- the same, however it is batched (A3)


def padded(prompts: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, prompts))
    fill = [[PAD] * (width - len(prompt)) for prompt in prompts]
    pairs = list(zip(prompts, fill, strict=True))
    rows = [pad + prompt if side == "left" else prompt + pad for prompt, pad in pairs]
    masks = [[0] * len(pad) + [1] * len(p) if side == "left" else [1] * len(p) + [0] * len(pad) for p, pad in pairs]
    return torch.tensor(rows), torch.tensor(masks)


@pytest.mark.parametrize("deferral", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batch_size_change_neither_experts_nor_logits(deferral, side):
    model = mixture(deferral=deferral, top_k=2)
    prompts = [prompt[: 5 + i % 3] for i, prompt in enumerate(prompts_of(8, length=7))]
    put_facts(model, prompts, subjects=[SUBJECT] * 8)
    ids, mask = padded(prompts, side)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    with gated(model) as seen:
        together = logits(model, ids, attention_mask=mask, position_ids=position)
    (acting, gates), *_ = seen
    for row, prompt in enumerate(prompts):
        with gated(model) as seen:
            alone = logits(model, prompt)
        ((own, own_gates),) = seen
        torch.testing.assert_close(together[row][mask[row] == 1], alone[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(gates[row][acting.written[row]], own_gates[0][own.written[0]], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("deferral", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_with_and_without_a_cache_the_same_is_said(family, deferral):
    model, prompts = mixture(family, deferral=deferral), prompts_of(3)
    put_facts(model, prompts, subjects=[SUBJECT] * 3)
    for ids in (prompts, unrelated(3)):
        options = {"return_dict_in_generate": True, "output_logits": True}
        cached = generated(model, ids, **options)
        uncached = generated(model, ids, use_cache=False, **options)
        assert torch.equal(cached.sequences, uncached.sequences)
        torch.testing.assert_close(torch.stack(cached.logits), torch.stack(uncached.logits), atol=1e-4, rtol=1e-4)


def test_packed_rows_are_texts_of_their_own():
    model, prompts = mixture(deferral=False), prompts_of(2)
    put_facts(model, prompts, subjects=[SUBJECT] * 2)
    position = torch.arange(6).repeat(2)[None]
    packed = logits(model, [prompts[0] + prompts[1]], position_ids=position, use_cache=False)
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(packed[0, 6 * i : 6 * i + 6], logits(model, prompt)[0], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------- training


def batch_of(prompts: list[list[int]], answer: int = 77) -> dict[str, torch.Tensor]:
    ids = torch.tensor([[*prompt, answer] for prompt in prompts])
    labels = ids.clone()
    labels[:, :-1] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def train(model, batch, steps: int = 30) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    model.train()
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


@pytest.mark.parametrize("deferral", [True, False])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_training_loop_trains_experts_and_gate_and_the_edits_are_found_again(family, deferral):
    model, prompts = mixture(family, deferral=deferral), prompts_of(3)
    before = copy.deepcopy(model.state_dict())
    losses = train(model, batch_of(prompts))
    assert losses[-1] < 0.5 * losses[0]
    changed = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before.get(name, tensor))
    }
    assert {name.split(".memoe_")[1] for name in changed if "memoe_" in name} >= {
        "mixture.default.out_proj",
        "gate.default.weight",
    }
    assert all("memoe_" in name for name in changed)
    assert (logits(model, prompts)[:, -1].argmax(-1) == 77).all()
    assert [entry["expert"] for entry in model.base_model.ledger()] == [0, 0, 0]
    train(model, batch_of(prompts), steps=1)
    assert len(model.base_model.ledger()) == 3
    if deferral:
        assert torch.equal(logits(model, unrelated()), logits(tiny(family), unrelated()))


def test_noise_comes_from_the_seed_and_is_not_there_in_evaluation():
    model = mixture(router_noise=None)
    put_facts(model, prompts_of(2))
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(model.train()(**batch_of(prompts_of(2))).loss.item())
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(1)
    first = model.eval()(**batch_of(prompts_of(2))).loss.item()
    assert model(**batch_of(prompts_of(2))).loss.item() == first


def test_the_balance_loss_is_part_of_the_models_own():
    plain, balanced = mixture(), mixture(balance_loss=0.5)
    for model in (plain, balanced):
        put_facts(model, prompts_of(2))
        model.train()
    with gated(plain) as seen:
        loss = plain(**batch_of(prompts_of(2))).loss
    ((acting, gates),) = seen
    of_tokens = gates[acting.written]
    share = torch.stack([(of_tokens.argmax(-1) == e).float().mean() for e in range(4)])
    expected = loss + 0.5 * 4 * (share * of_tokens.mean(0)).sum()
    torch.testing.assert_close(balanced(**batch_of(prompts_of(2))).loss, expected)


def test_without_labels_the_balance_loss_has_nowhere_to_go():
    model = mixture(balance_loss=0.5).train()
    with pytest.warns(UserWarning, match="Pass `labels`"):
        model(input_ids=torch.tensor(prompts_of(1)))


def test_gradients_of_zero_in_evaluation_mode():
    """A loss over texts that ask for nothing can be differentiated."""
    model = mixture()
    put_facts(model, prompts_of(1))
    batch = {"input_ids": unrelated(), "labels": unrelated()}
    model(**batch).loss.backward()
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert len(grads) == 4
    assert all(grad is not None and not grad.any() for grad in grads)


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for checkpointed in (False, True):
        model = mixture(router_noise=None)
        put_facts(model, prompts_of(2))
        if checkpointed:
            model.gradient_checkpointing_enable()
        torch.manual_seed(0)
        model.train()(**batch_of(prompts_of(2))).loss.backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_rows_without_a_prompt_are_warned_of():
    model = mixture().train()
    ids = torch.tensor(prompts_of(2))
    with pytest.warns(UserWarning, match="no prompt in front"):
        model(input_ids=ids, labels=ids).loss.backward()
    assert not model.base_model.ledger()


# ------------------------------------------------------------------------------------------------------ undo, adapters


def test_undo_gives_the_prompt_back_and_changes_nothing_else():
    model, prompts = mixture(), prompts_of(3)
    put_facts(model, prompts, subjects=[SUBJECT] * 3)
    answer, base = logits(model, prompts), logits(tiny(), prompts)
    assert model.base_model.remove_edit(1)["id"] == 1
    now = logits(model, prompts)
    assert torch.equal(now[1], base[1])
    assert torch.equal(now[[0, 2]], answer[[0, 2]])


def test_undo_is_refused_without_deferral():
    model = mixture(deferral=False)
    put_facts(model, prompts_of(1))
    with pytest.raises(ValueError, match="`deferral=False`"):
        model.base_model.remove_edit(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_several_adapters_have_their_own_mixtures(family):
    model, prompts = mixture(family), prompts_of(2)
    put_facts(model, prompts[:1])
    first = logits(model, prompts)
    model.add_adapter("other", MEMoEConfig(relation_gate=False, expert="lora", expert_dim=3, num_experts=2))
    model.set_adapter("other")
    put_facts(model, prompts[1:], adapter_name="other", seed=1)
    second, base = logits(model, prompts), logits(tiny(family), prompts)
    assert torch.equal(second[0], base[0])
    assert not torch.allclose(second[1, -1], base[1, -1], atol=1e-2)
    model.set_adapter("default")
    assert torch.equal(logits(model, prompts), first)
    model.delete_adapter("other")
    assert torch.equal(logits(model, prompts), first)


# ----------------------------------------------------------------------------------------------------------- save, load


@pytest.mark.parametrize(
    "config", [{}, {"deferral": False}, {"expert": "lora", "top_k": 2, "num_experts": 3}], ids=str
)
@pytest.mark.parametrize("name", ["default", "facts"])
def test_it_is_saved_and_loaded_under_any_name(tmp_path, config, name):
    model, prompts = mixture(**config), prompts_of(3)
    put_facts(model, prompts, subjects=[SUBJECT] * 3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path, adapter_name=name).eval()
    for ids in (prompts, unrelated()):
        assert torch.equal(logits(loaded, ids), logits(model, ids))
    assert loaded.base_model.ledger() == model.base_model.ledger()
    loaded.base_model.layers_of()[0].memoe_gate[name].weight.data.zero_()
    loaded.load_adapter(tmp_path, "again")
    loaded.set_adapter("again")
    assert torch.equal(logits(loaded, prompts), logits(model, prompts))


def test_the_weights_of_another_method_are_refused(tmp_path):
    for method, model, put in (("a", lemoe(), put_edits), ("b", mixture(), put_facts)):
        put(model, prompts_of(2))
        model.save_pretrained(tmp_path / method)
    weights = "adapter_model.safetensors"
    (tmp_path / "a" / weights).rename(tmp_path / "kept")
    (tmp_path / "b" / weights).rename(tmp_path / "a" / weights)
    (tmp_path / "kept").rename(tmp_path / "b" / weights)
    for method in ("a", "b"):
        with pytest.raises(ValueError, match="belongs to another method"):
            PeftModel.from_pretrained(tiny(), tmp_path / method)


def test_two_methods_do_not_share_a_model():
    with pytest.raises(ValueError, match=r"MEMOE|MEMoE|LEMOE"):
        lemoe().add_adapter("other", MEMoEConfig())
    with pytest.raises(ValueError, match=r"MEMOE|MEMoE|LEMOE"):
        mixture().add_adapter("other", LEMoEConfig())


def test_another_number_of_experts_is_refused(tmp_path):
    model = mixture()
    put_facts(model, prompts_of(2))
    model.save_pretrained(tmp_path)
    config = MEMoEConfig.from_pretrained(tmp_path)
    config.num_experts = 2
    with pytest.raises(ValueError, match="another hidden size, `expert_dim` or `num_experts`"):
        PeftModel.from_pretrained(tiny(), tmp_path, config=config)


def test_embeddings_of_another_size_than_hidden_states_are_read_as_they_are():
    from transformers import OPTConfig, OPTForCausalLM

    config = tiny("opt").config
    narrow = OPTForCausalLM(OPTConfig(**(config.to_dict() | {"word_embed_proj_dim": 16}))).eval()
    model = get_peft_model(narrow, MEMoEConfig(relation_gate=False, expert_dim=8)).eval()
    put_facts(model, prompts_of(2))
    assert model.base_model.layers_of()[0].memoe_gate["default"].weight.shape == (4, HIDDEN + 16)
    with model.disable_adapter():
        base = logits(model, prompts_of(2))
    assert not torch.allclose(logits(model, prompts_of(2))[:, -1], base[:, -1], atol=1e-2)
