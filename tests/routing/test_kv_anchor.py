"""The paper's routing, its three hazards, and the switches that avoid them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model

from lemoe_hf import LEMoEConfig
from lemoe_hf.routing.kv_anchor import KVRouter, examples
from lemoe_hf.routing.layout import pieces_of
from lemoe_hf.routing.passes import Acting, Batch
from lemoe_hf.routing.text import Text
from tiny import (
    EOS,
    HIDDEN,
    PAD,
    adapter_state,
    assert_same,
    committed,
    edited,
    logits,
    prompts_of,
    put_edits,
    tiny,
    unrelated,
)


PROJECTIONS = ["shared", "shared_frozen", "per_expert"]


def model_of(count=3, **config):
    model = edited(**({"routing": "kv_anchor", "expert_dim": 4} | config))
    if count:
        put_edits(model, prompts_of(count))
    return model


def halves(model) -> tuple[KVRouter, KVRouter]:
    layer = model.base_model.layers_of()[0]
    return layer.lemoe_router["default"], layer.lemoe_router_bank["default"]


def prefer(model, rows: torch.Tensor, experts: list[int]) -> None:
    """Set the committed keys so that each prompt's expert scores highest."""
    router, bank = halves(model)
    anchors = router.anchors_of(model.base_model.model, rows)
    down, up = (bank if len(bank.down) else router).down[0], (bank if len(bank.up) else router).up[0]
    values = torch.nn.functional.silu(anchors @ down) @ up
    bank.keys[experts] = torch.linalg.pinv(values).T.detach() * 20


def train(model, prompts, steps=5, answer=77, lr=0.1, weight_decay=0.1):
    ids = torch.tensor([[*prompt, answer] for prompt in prompts])
    labels = ids.clone()
    labels[:, :-1] = -100
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=weight_decay)
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def scores(model, prompts) -> torch.Tensor:
    router, bank = halves(model)
    anchors = router.anchors_of(model.base_model.model, torch.tensor(prompts))
    with torch.no_grad():
        return router.logits(bank, anchors)


def routes(model, ids, **inputs) -> Acting:
    """What acts where these texts are whole prompts."""
    ids = torch.as_tensor(ids)
    layer, pieces = model.base_model.layers_of()[0], pieces_of(ids, inputs, False)
    texts = [Text() for _ in pieces]
    for text, piece in zip(texts, pieces, strict=True):
        text.read(piece.tokens, piece.places, layer.vocabulary("default"))
    batch = Batch(pieces, texts, [0] * len(texts), ids, inputs)
    return layer.route("default", model.base_model.model, batch)


# ---------------------------------------------------------------------------------------------------------------- formula


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_scores_are_keys_times_the_projected_mean_embedding(projection):
    model, prompts = model_of(3, projection=projection), prompts_of(2)
    router, bank = halves(model)
    embeds = model.get_input_embeddings()(torch.tensor(prompts)).mean(1)
    keys = torch.cat([bank.keys, router.keys])
    down, up = torch.cat([bank.down, router.down]), torch.cat([bank.up, router.up])
    assert len(down) == {"shared": 1, "shared_frozen": 1, "per_expert": 4}[projection]
    for row in range(2):
        for expert in range(4):
            i = expert if len(down) > 1 else 0
            value = up[i].T @ torch.nn.functional.silu(down[i].T @ embeds[row])
            torch.testing.assert_close(scores(model, prompts)[row, expert], (keys[expert] @ value).detach())


def test_padding_is_no_part_of_the_mean():
    model, (prompt,) = model_of(2, deferral=False), prompts_of(1)
    ids = torch.tensor([[0, 0, *prompt]])
    mask = (ids != 0).long()
    acting, alone = routes(model, ids, attention_mask=mask), routes(model, [prompt])
    assert (acting.columns.tolist(), alone.columns.tolist()) == ([[2, 3, 4, 5, 6, 7]], [[0, 1, 2, 3, 4, 5]])
    torch.testing.assert_close(acting.gates, alone.gates)
    router, _ = halves(model)
    torch.testing.assert_close(
        router.anchors_of(model.base_model.model, ids.masked_fill(mask == 0, -1)),
        model.get_input_embeddings()(torch.tensor([prompt])).mean(1),
    )


@pytest.mark.parametrize("deferral", [True, False])
def test_a_row_of_padding_has_no_route(deferral):
    model, (prompt,) = model_of(1, deferral=deferral), prompts_of(1)
    ids = torch.tensor([prompt, [PAD] * 6])
    assert torch.equal(logits(model, ids, attention_mask=(ids != PAD).long())[0], logits(model, [prompt] * 2)[0])


# ---------------------------------------------------------------------------------------------------------------- hazards


def gate_after(model, prompt) -> float:
    return routes(model, [prompt]).gates.max().item()


def test_softmax_gates_dilute_an_expert_as_others_come_and_gates_of_one_do_not():
    prompts = prompts_of(40)
    for gate_value in ("softmax", "one"):
        model, gates = model_of(0, gate_value=gate_value), []
        for first in range(0, 40, 10):
            put_edits(model, prompts[first : first + 10], seed=first)
            gates.append(gate_after(model, prompts[0]))
        if gate_value == "one":
            assert gates == [1.0] * 4
        else:
            assert gates == sorted(gates, reverse=True)
            assert gates[-1] < 0.7 * gates[0]


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_scores_of_old_experts_drift_only_under_a_projection_that_keeps_training(projection):
    model, prompts = model_of(0, projection=projection, router_loss=0.0, train_route="free"), prompts_of(4)
    train(model, prompts[:1])
    model.base_model.commit()
    before, stored = scores(model, prompts[:1])[:, :1], committed(model)
    train(model, prompts[1:2])
    model.base_model.commit()
    after = scores(model, prompts[:1])[:, :1]
    if projection == "shared":
        assert not torch.allclose(after, before, atol=1e-3)
    else:
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)
    for name, tensor in stored.items():
        assert torch.equal(committed(model)[name][: len(tensor)], tensor), name


@pytest.mark.parametrize(("train_route", "reaches"), [("forced", True), ("free", False)])
def test_a_forced_route_trains_the_open_expert_where_a_free_one_starves_it(train_route, reaches):
    """The committed expert's key wins the prompt by far."""
    model, prompts = model_of(1, train_route=train_route, gate_value="softmax"), prompts_of(2)
    prefer(model, torch.tensor(prompts[1:]), [0])
    ids = torch.tensor([[*prompts[1], 77]])
    model.train()
    model(input_ids=ids, labels=ids.masked_fill(torch.arange(7) < 6, -100)).loss.backward()
    opened = model.base_model.layers_of()[0].lemoe_open["default"]
    assert bool(opened.out_proj.grad.abs().sum() > 0) is reaches


def test_the_router_loss_teaches_old_prompts_their_own_experts():
    model, prompts = model_of(3), prompts_of(3)
    router, bank = halves(model)
    anchors = router.anchors_of(model.base_model.model, torch.tensor(prompts)).detach()
    bank.remember(anchors, torch.arange(3))
    new = router.anchors_of(model.base_model.model, torch.tensor(prompts_of(1, seed=9))).detach()
    alone, replayed = (router.loss(bank, new, torch.tensor([3]), old) for old in (None, bank.others(new)))
    every = torch.cat([new, anchors])
    expected = torch.nn.functional.cross_entropy(router.logits(bank, every), torch.tensor([3, 0, 1, 2]))
    torch.testing.assert_close(replayed, expected)
    torch.testing.assert_close(alone, torch.nn.functional.cross_entropy(router.logits(bank, new), torch.tensor([3])))


# ------------------------------------------------------------------------------------------ training without an editor


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_a_training_loop_teaches_the_router(projection):
    """Gates of one give the keys no gradient: what they learn, they learn by the router's loss."""
    model, prompts = model_of(0, projection=projection), prompts_of(4)
    for i, prompt in enumerate(prompts):
        train(model, [prompt], steps=120, answer=77 + i, lr=0.05, weight_decay=0.0)
        model.base_model.commit()
    assert routes(model, prompts).experts[:, 0].tolist() == [0, 1, 2, 3]
    assert logits(model, prompts)[:, -1].argmax(-1).tolist() == [77, 78, 79, 80]


def test_the_loss_of_a_model_in_training_holds_the_routers():
    model, prompts = model_of(3, router_loss=0.5), prompts_of(2, seed=9)
    router, bank = halves(model)
    bank.remember(torch.randn(3, HIDDEN), torch.arange(3))
    ids = torch.tensor(prompts)
    labels = ids.masked_fill(torch.arange(6) < 4, -100)
    output = model.train()(input_ids=ids, labels=labels)
    router, bank = halves(model)
    assert bank.anchor_expert.tolist() == [0, 1, 2, 3, 3]

    def own(output):
        return F.cross_entropy(output.logits[:, 3:-1].flatten(0, 1), ids[:, 4:].flatten())

    anchors = router.anchors_of(model.base_model.model, ids[:, :4])
    expected = own(output) + 0.5 * router.loss(bank, anchors, torch.tensor([3, 3]), bank.others(anchors))
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(output["loss"], expected)
    torch.testing.assert_close(model(input_ids=ids, labels=labels, return_dict=False)[0], expected)
    output.loss.backward()
    assert router.keys.grad.abs().max() > 0
    with torch.no_grad():
        output = model(input_ids=ids, labels=labels)
    torch.testing.assert_close(output.loss, own(output))
    output = model.eval()(input_ids=ids, labels=labels)
    torch.testing.assert_close(output.loss, own(output))


def test_without_a_loss_of_the_model_the_router_says_that_it_does_not_learn():
    model, ids = model_of(1).train(), torch.tensor(prompts_of(1))
    for options in ({}, {"return_dict": False}):
        with pytest.warns(UserWarning, match="Pass `labels`"):
            model(input_ids=ids, **options)


@pytest.mark.parametrize("replay", [True, False])
def test_a_training_loop_remembers_every_prompt_once_as_the_router_reads_it(replay, tmp_path):
    """With the token before the text, which the anchors leave out, and without the padding."""
    model, prompts = model_of(2, router_replay=replay), prompts_of(3, seed=9)
    rows = [[PAD, EOS, *prompts[0], 250], [*prompts[1], 250, PAD, PAD], [*prompts[2], 250, PAD, PAD]]
    ids = torch.tensor(rows)
    batch = {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": ids.masked_fill(ids != 250, -100)}
    for _ in range(2):
        model.train()(**batch)
    _, bank = halves(model)
    assert bank.anchor_expert.tolist() == [2] * 3 * replay
    assert model.peft_config["default"].num_router_anchors == 3 * replay
    if replay:
        embeds = [
            model.get_input_embeddings()(torch.tensor(row)).mean(0) for row in ([EOS, *prompts[0]], *prompts[1:])
        ]
        torch.testing.assert_close(bank.anchors, torch.stack(embeds))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path)
    assert_same(adapter_state(loaded), adapter_state(model))


def test_undo_in_the_open_expert_leaves_nothing_to_the_next():
    model, prompts = model_of(1), prompts_of(2)
    without_stamp = lambda: {name: each for name, each in adapter_state(model).items() if "stamp" not in name}  # noqa: E731
    before = without_stamp()
    train(model, prompts[1:])
    assert halves(model)[1].anchor_expert.tolist() == [1]
    model.base_model.remove_edit(1)
    assert_same(without_stamp(), before)
    assert model.peft_config["default"].num_router_anchors == 0


# --------------------------------------------------------------------------------------------------------------- deferral


def test_deferral_leaves_prompts_that_are_out_of_scope_alone():
    base, model, prompts = tiny(), model_of(3), prompts_of(3)
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    mixed = torch.cat([torch.tensor(prompts), unrelated(2, length=6)])
    now, before = logits(model, mixed), logits(base, mixed)
    assert torch.equal(now[3:], before[3:])
    assert not torch.allclose(now[:3, -1], before[:3, -1], atol=1e-2)


def test_without_deferral_every_prompt_is_routed_as_published():
    base, model = tiny(), model_of(3, deferral=False)
    assert not torch.allclose(logits(model, unrelated())[:, -1], logits(base, unrelated())[:, -1], atol=1e-2)
    empty = model_of(0, deferral=False)
    assert torch.equal(logits(empty, unrelated()), logits(base, unrelated()))
    with model.disable_adapter():
        assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))


def test_without_deferral_an_expert_that_is_not_full_yet_is_routed_to_as_well():
    base, model = tiny(), model_of(0, deferral=False)
    train(model, prompts_of(2))
    assert model.base_model.has_open_edits()
    assert not torch.equal(logits(model, unrelated()), logits(base, unrelated()))


@pytest.mark.parametrize("gate_value", ["one", "softmax"])
def test_top_k_mixes_the_best_experts(gate_value):
    model, prompts = model_of(4, top_k=2, gate_value=gate_value), prompts_of(4)
    acting = routes(model, prompts)
    weights = scores(model, prompts)[:, :4].softmax(-1)
    best, experts = weights.topk(2, -1)
    assert torch.equal(acting.experts, experts)
    expected = best / best.sum(-1, keepdim=True) if gate_value == "one" else best
    torch.testing.assert_close(acting.gates, expected[..., None].expand(-1, -1, 6))
    single = model_of(1, top_k=2)
    assert routes(single, prompts_of(1)).experts.shape == (1, 1)


def test_generation_keeps_its_route():
    model, prompts = model_of(3, deferral=False, top_k=2, gate_value="softmax"), prompts_of(3)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    cached = model.generate(input_ids=torch.tensor(prompts), **options)
    assert torch.equal(model.generate(input_ids=torch.tensor(prompts), use_cache=False, **options), cached)
    alone = [model.generate(input_ids=torch.tensor([prompt]), **options) for prompt in prompts]
    assert torch.equal(torch.cat(alone), cached)
    embeds = model.get_input_embeddings()(torch.tensor(prompts)).detach()
    assert torch.equal(model.generate(inputs_embeds=embeds, **options), cached[:, 6:])


# -------------------------------------------------------------------------------------------------------- freezing, saving


@pytest.mark.parametrize("projection", PROJECTIONS)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_routers_survive_the_disk_and_take_the_next_edit(projection, count, tmp_path):
    model = model_of(count, projection=projection, gate_value="softmax", deferral=False, anchor_dim=5)
    router, bank = halves(model)
    bank.remember(torch.randn(2, HIDDEN), torch.zeros(2, dtype=torch.int32))
    model.base_model.store([], [])
    model.save_pretrained(tmp_path)
    native = tiny()
    native.load_adapter(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path, adapter_name="other", is_trainable=True).eval()
    onto = model_of(3, projection=projection, gate_value="softmax", deferral=False, anchor_dim=5)
    onto.load_adapter(tmp_path, adapter_name="default")
    for other in (native, loaded, onto):
        for ids in (prompts_of(3), unrelated()):
            assert torch.equal(logits(other, ids), logits(model, ids))
    assert_same(adapter_state(onto), adapter_state(model))
    assert loaded.peft_config["other"].num_router_anchors == 2
    before = scores(model, prompts_of(3))[:, :count]
    put_edits(loaded, [[7, 8, 9]], seed=4)
    layer = loaded.base_model.layers_of()[0]
    router, bank = layer.lemoe_router["other"], layer.lemoe_router_bank["other"]
    assert len(bank.keys) == count + 1
    anchors = router.anchors_of(loaded.base_model.model, torch.tensor(prompts_of(3)))
    torch.testing.assert_close(router.logits(bank, anchors)[:, :count].detach(), before)


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_conversion_leaves_committed_keys_alone(projection):
    model = model_of(3, projection=projection)
    before = committed(model)
    model.to(torch.bfloat16)
    assert_same(committed(model), before)
    assert logits(model, prompts_of(3)).dtype == torch.bfloat16


def test_undo_in_a_shared_router_keeps_the_keys_in_place():
    """An expert cannot leave a softmax without changing the others' shares; its prompt is deferred again."""
    base, model, prompts = tiny(), model_of(3), prompts_of(3)
    before = logits(model, prompts)
    model.base_model.remove_edit(1)
    after = logits(model, prompts)
    assert torch.equal(after[[0, 2]], before[[0, 2]])
    assert torch.equal(after[1], logits(base, prompts)[1])
    assert len(halves(model)[1].keys) == model.peft_config["default"].num_experts == 3


def test_paper_trains_and_commits(tmp_path):
    model, prompts = get_peft_model(tiny(), LEMoEConfig.paper()).eval(), prompts_of(2)
    train(model, prompts[:1])
    model.base_model.commit()
    train(model, prompts[1:])
    model.base_model.commit()
    assert model.peft_config["default"].num_experts == 2
    assert model.base_model.layers_of()[0].lemoe_bank["default"].in_proj.shape == (2, HIDDEN, 48)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(), tmp_path)
    assert torch.equal(logits(loaded, unrelated()), logits(model, unrelated()))


def test_a_prompt_that_is_edited_again_is_not_replayed_as_it_was():
    _, bank = KVRouter.pair(LEMoEConfig(routing="kv_anchor"), hidden_size=8)
    stored = torch.eye(8)[:3]
    bank.remember(stored, torch.tensor([0, 1, 2]))
    again = stored[1:2] * (1 + 1e-6)
    anchors, experts = examples(again, torch.tensor([3]), bank.others(again))
    assert torch.equal(anchors, torch.cat([again, stored[[0, 2]]]))
    assert experts.tolist() == [3, 0, 2]
    bank.remember(again, torch.tensor([3]))
    assert bank.anchor_expert.tolist() == [0, 2, 3]
