"""The gate and the bypass of MEMoE: their formula, and the tokens that they leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lemoe_hf.routing.mixture import Mixture
from lemoe_hf.routing.passes import EVERYTHING
from lemoe_hf.tuners.memoe.gate import TokenGate, balance, top
from mixtures import mixture, put_facts
from tiny import FAMILIES, HIDDEN, logits, prompts_of, tiny


def layer_of(model):
    return model.base_model.layers_of()[0]


def test_the_gate_is_a_softmax_over_the_hidden_state_beside_the_anchor():
    gate = TokenGate(3, 5, 2)
    gate.weight.data = torch.randn(3, 7)
    x, anchors, noise = torch.randn(2, 4, 5), torch.randn(2, 2), torch.randn(2, 4, 3)
    for row in range(2):
        for column in range(4):
            read = torch.cat([x[row, column], anchors[row]])
            expected = (gate.weight @ read + noise[row, column]).softmax(-1)
            torch.testing.assert_close(gate(x, anchors, noise)[row, column], expected)


def test_the_highest_gates_are_kept_as_they_are():
    probabilities = torch.tensor([[[0.1, 0.5, 0.4], [0.7, 0.1, 0.2]]])
    assert torch.equal(top(probabilities, 1), torch.tensor([[[0.0, 0.5, 0.0], [0.7, 0.0, 0.0]]]))
    assert torch.equal(top(probabilities, 2), torch.tensor([[[0.0, 0.5, 0.4], [0.7, 0.0, 0.2]]]))
    assert torch.equal(top(probabilities, 3), probabilities)


def test_the_balance_loss_is_one_where_tokens_are_spread_and_the_number_of_experts_where_they_are_not():
    written = torch.ones(1, 4, dtype=torch.bool)
    assert balance(torch.eye(4)[None], written) == 1
    assert balance(torch.eye(4)[[0, 0, 0, 0]][None], written) == 4
    written[0, 1:] = False  # what is not written to does not count
    assert balance(torch.eye(4)[None], written) == 4


@pytest.mark.parametrize("expert", ["ffn", "lora"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("top_k", [1, 3])
def test_the_bypass_adds_the_gated_experts(expert, normalize, top_k):
    """h = FFN(x) + lam * scale * sum of G_e f_e(x), of the experts with the highest gates."""
    model = mixture(expert=expert, normalize=normalize, top_k=top_k, lam=0.5)
    put_facts(model, prompts_of(1))
    layer = layer_of(model)
    layer.configs["default"].output_scale = 0.25 if normalize else None
    x, anchors = torch.randn(2, 4, HIDDEN), torch.randn(2, HIDDEN)
    rows, columns, written = Mixture.padded([(1, [2, 3]), (0, [1])], x.device)
    acting = Mixture(rows, columns, written, 4, anchors)
    experts, gate = layer.memoe_mixture["default"], layer.memoe_gate["default"].weight
    norm = (lambda each: F.rms_norm(each, each.shape)) if normalize else (lambda each: each)
    with torch.no_grad():
        plain = torch.randn(2, 4, HIDDEN)
        actual, expected = layer._bypass("default", acting, x, plain), plain.clone()
        for row, column, anchor in ((1, 2, 0), (1, 3, 0), (0, 1, 1)):
            read = norm(x[row, column])
            gates = (gate @ torch.cat([read, norm(anchors[anchor])])).softmax(-1)
            for each in gates.topk(top_k).indices:
                h = read @ experts.in_proj[each]
                if expert == "ffn":
                    h = h * F.silu(read @ experts.gate_proj[each])
                expected[row, column] += (
                    0.5 * (0.25 if normalize else 1.0) * gates[each] * (h @ experts.out_proj[each])
                )
    torch.testing.assert_close(actual, expected)
    untouched = torch.ones(2, 4, dtype=torch.bool)
    untouched[[1, 1, 0], [2, 3, 1]] = False
    assert torch.equal(actual[untouched], plain[untouched])


def test_experts_start_apart_and_with_an_output_of_zero():
    experts = layer_of(mixture()).memoe_mixture["default"]
    assert not experts.out_proj.any()
    assert not torch.equal(experts.in_proj[0], experts.in_proj[1])
    again = layer_of(mixture()).memoe_mixture["default"]
    assert torch.equal(experts.in_proj, again.in_proj)


def test_without_an_anchor_the_gate_reads_the_hidden_state_alone():
    model = mixture(use_anchor=False)
    put_facts(model, prompts_of(2))
    assert layer_of(model).memoe_gate["default"].weight.shape == (4, HIDDEN)
    assert not torch.allclose(logits(model, prompts_of(2))[:, -1], logits(tiny(), prompts_of(2))[:, -1], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("expert", ["lora", "ffn"])
@pytest.mark.parametrize("width", [3, None])
def test_every_form_of_expert_works_in_every_family(family, expert, width):
    model, prompts = mixture(family, expert=expert, expert_dim=width), prompts_of(2)
    put_facts(model, prompts)
    now, base = logits(model, prompts), logits(tiny(family), prompts)
    assert torch.equal(now[:, :-1], base[:, :-1])
    assert not torch.allclose(now[:, -1], base[:, -1], atol=1e-2)


def test_noise_is_drawn_in_training_only_and_can_be_drawn_again():
    model = mixture(num_experts=2, router_noise=None)
    layer = layer_of(model)
    places = Mixture.padded([(0, [0, 1])], torch.device("cpu"))
    draws = [
        layer.noisy("default", Mixture(*places, 2, torch.zeros(1, HIDDEN)), torch.Generator().manual_seed(seed)).noise
        for seed in (3, 3, 4)
    ]
    assert draws[0].shape == (1, 2, 2)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    many = layer.noisy(
        "default", Mixture(*Mixture.padded([(0, [0] * 20_000)], places[0].device), 1, torch.zeros(1, HIDDEN))
    )
    assert many.noise.std() == pytest.approx(0.5, rel=0.05)


def test_a_mixture_may_act_on_all_that_there_is():
    model = mixture(init_weights=False)
    layer = layer_of(model)
    acting = layer.act_on_all("default")
    assert acting.width == EVERYTHING
    for shape in ((3, HIDDEN), (2, 3, HIDDEN)):
        with torch.no_grad():
            changed = layer._bypass("default", acting, torch.randn(shape), torch.zeros(shape))
        assert (changed != 0).any(-1).all()
