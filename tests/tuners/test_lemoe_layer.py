"""The experts and the bypass: their formula, their freeze state, and the bits they leave alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gated import watched
from lemoe_hf.routing.passes import EVERYTHING, Acting
from lemoe_hf.tuners.experts import Experts
from lemoe_hf.tuners.ledger import Bytes
from tiny import FAMILIES, HIDDEN, assert_same, edited, logits, prompts_of, put_edits, tiny


def random_experts(num=3, gated=False, trainable=False) -> Experts:
    experts = Experts(num, 8, 4, gated, trainable)
    generator = torch.Generator().manual_seed(0)
    for weight in experts.weights().values():
        weight.data.copy_(torch.randn(weight.shape, generator=generator))
    return experts


@pytest.mark.parametrize("gated", [False, True])
def test_experts_compute_the_formula(gated):
    """The batched product equals a loop over rows, slots and tokens."""
    experts = random_experts(gated=gated)
    x, gates = torch.randn(2, 5, 8), torch.rand(2, 2, 5)
    picked = torch.tensor([[0, 2], [1, 1]])
    expected = torch.zeros(2, 5, 8)
    for row in range(2):
        for slot in range(2):
            weights = {name: weight[picked[row, slot]] for name, weight in experts.weights().items()}
            h = x[row] @ weights["in_proj"]
            if gated:
                h = F.silu(x[row] @ weights["gate_proj"]) * h
            expected[row] += gates[row, slot, :, None] * (h @ weights["out_proj"])
    torch.testing.assert_close(experts(x, picked, gates), expected)


def test_new_experts_start_alike_and_with_an_output_of_zero():
    experts = Experts(3, 8, 4, True, True)
    experts.reset_parameters(init_weights=True, seed=5)
    assert not experts.out_proj.any()
    for name in ("in_proj", "gate_proj"):
        weight = getattr(experts, name)
        assert weight.std() > 0
        assert torch.equal(weight[0], weight[2])
    experts.reset_parameters(init_weights=False)
    assert experts.out_proj.any()


def test_the_first_weights_depend_on_the_seed_and_not_on_the_global_state():
    first, second, third = (Experts(1, 8, 4, False, True) for _ in range(3))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first.reset_parameters(True, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second.reset_parameters(True, seed=5)
    third.reset_parameters(True, seed=6)
    assert torch.equal(first.in_proj, second.in_proj)
    assert not torch.equal(first.in_proj, third.in_proj)


def test_committed_experts_are_buffers_and_open_ones_parameters():
    assert not list(random_experts(trainable=False).parameters())
    assert not list(random_experts(trainable=True).buffers())


@pytest.mark.parametrize("convert", [torch.nn.Module.half, torch.nn.Module.bfloat16, torch.nn.Module.double])
def test_conversion_leaves_committed_experts_alone(convert):
    bank, training = random_experts(trainable=False), random_experts(trainable=True)
    before = {name: weight.clone() for name, weight in bank.weights().items()}
    convert(bank)
    convert(training)
    assert_same(bank.weights(), before)
    assert training.in_proj.dtype != torch.float32


def test_bytes_keep_text_of_any_script():
    ledger = Bytes()
    ledger.write("Zürich\n")
    ledger.write("東京\n")
    assert ledger.text == "Zürich\n東京\n"
    ledger.text = "x"
    assert ledger.text == "x"


def layer_of(model):
    return model.base_model.layers_of()[0]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("lam", [1.0, 0.25])
def test_the_bypass_adds_the_weighted_expert(normalize, lam):
    """h = FFN(x) + lam * scale * f(x), with x of unit root mean square where inputs are normalised."""
    model = edited(normalize=normalize, lam=lam)
    put_edits(model, prompts_of(2), start=0)
    layer = layer_of(model)
    layer.configs["default"].output_scale = 0.5 if normalize else None
    x = torch.randn(1, 4, HIDDEN)
    one = torch.ones(1, 1)
    acting = Acting.of([(0, [2, 3])], one.long(), one, width=4, num_committed=2, uses_open=False)
    with torch.no_grad():
        plain = layer.base_layer(x)
        actual = layer._bypass("default", acting, x, plain)
        read = F.rms_norm(x, (HIDDEN,)) if normalize else x
        bank = layer.lemoe_bank["default"]
        expert = read @ bank.in_proj[1] @ bank.out_proj[1]
    torch.testing.assert_close(actual[:, 2:], (plain + lam * (0.5 if normalize else 1.0) * expert)[:, 2:])
    assert torch.equal(actual[:, :2], plain[:, :2])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("expert", ["lora", "ffn"])
@pytest.mark.parametrize("width", [3, None])
def test_every_form_of_expert_works_in_every_family(family, expert, width):
    model, prompts = edited(family, expert=expert, expert_dim=width), prompts_of(2)
    put_edits(model, prompts)
    assert not torch.allclose(logits(model, prompts)[:, -1], logits(tiny(family), prompts)[:, -1], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_before_the_start_keep_their_bits(family):
    model, prompts = edited(family), prompts_of(2)
    put_edits(model, prompts, start=3)
    base, now = logits(tiny(family), prompts), logits(model, prompts)
    assert torch.equal(now[:, :3], base[:, :3])
    assert not torch.allclose(now[:, 3], base[:, 3], atol=1e-2)


def test_an_expert_that_overflows_touches_no_deferred_row():
    """Zero times infinity is not zero: the base model's output is kept, and nothing is added to it."""
    model, prompts = edited(), prompts_of(2)
    put_edits(model, prompts)
    layer_of(model).lemoe_bank["default"].out_proj.fill_(torch.inf)
    mixed = [prompts[0], [200, 201, 202, 203, 204, 205], prompts[1]]
    now, base = logits(model, mixed), logits(tiny(), mixed)
    assert torch.equal(now[1], base[1])
    assert torch.equal(now[:, :5], base[:, :5])
    assert now[[0, 2], 5].isnan().all()


def test_two_subjects_in_one_prompt_act_one_after_the_other():
    """The first from its end to the second's end, then the second alone."""
    model = edited()
    first, second = [20, 21, 22], [30, 31]
    put_edits(model, [[10, *first], [11, *second]], subjects=[(1, 3), (1, 2)])
    row = [12, *first, 13, *second, 14]
    with watched(model) as acting:
        logits(model, row)
    assert acting == [[-1, -1, -1, 0, 0, 0, 1, 1]]
    alone = edited()
    put_edits(alone, [[10, *first]], subjects=[(1, 3)])
    # What stands before the second subject's end knows nothing of it.
    with watched(alone) as acting:
        expected = logits(alone, row)
    assert acting == [[-1, -1, -1, 0, 0, 0, 0, 0]]
    torch.testing.assert_close(logits(model, row)[:, :6], expected[:, :6])
    assert torch.equal(logits(model, row)[:, :3], logits(tiny(), row)[:, :3])
    assert not torch.allclose(logits(model, row)[:, 6:], expected[:, 6:], atol=1e-2)


# -------------------------------------------------------------------------------------------------- what acts in a pass


def acting_of(places, experts, gates, width=5) -> Acting:
    return Acting.of(places, torch.tensor(experts), torch.tensor(gates), width, num_committed=2, uses_open=False)


def test_experts_act_on_the_columns_of_their_rows_and_on_no_others():
    acting = acting_of([(1, [3]), (0, [0, 2, 4])], [[1], [0]], [[1.0], [0.5]])
    assert acting.rows.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert acting.columns[acting.written].tolist() == [3, 0, 2, 4]
    assert acting.written.tolist() == [[True, False, False], [True, True, True]]
    assert acting.gates.tolist() == [[[1.0, 0.0, 0.0]], [[0.5, 0.5, 0.5]]]


@pytest.mark.parametrize("form", ["rows and columns", "one row of tokens", "columns of the model's own in front"])
def test_a_bypass_writes_to_the_columns_that_act_whatever_the_form_of_its_input(form):
    model = edited()
    put_edits(model, prompts_of(2))
    layer = layer_of(model)
    acting = acting_of([(0, [1, 2]), (1, [4]), (1, [0])], [[0], [1], [0]], [[1.0], [1.0], [0.5]])
    x = torch.randn(2, 5, HIDDEN)
    plain = torch.randn(2, 5, HIDDEN)
    expected, bank = plain.clone(), layer.lemoe_bank["default"]
    scale = layer.configs["default"].lam * (layer.configs["default"].output_scale or 1.0)
    for row, column, expert, gate in ((0, 1, 0, 1.0), (0, 2, 0, 1.0), (1, 4, 1, 1.0), (1, 0, 0, 0.5)):
        read = F.rms_norm(x[row, column], (HIDDEN,)) if layer.configs["default"].normalize else x[row, column]
        expected[row, column] += scale * gate * (read @ bank.in_proj[expert] @ bank.out_proj[expert])
    if form == "one row of tokens":
        actual = layer._bypass("default", acting, x.flatten(0, 1), plain.flatten(0, 1)).view(2, 5, HIDDEN)
    elif form == "rows and columns":
        actual = layer._bypass("default", acting, x, plain)
    else:
        own = torch.randn(2, 3, HIDDEN)
        actual = layer._bypass("default", acting, torch.cat([own, x], 1), torch.cat([own, plain], 1))
        assert torch.equal(actual[:, :3], own)
        actual = actual[:, 3:]
    torch.testing.assert_close(actual, expected)
    untouched = torch.ones(2, 5, dtype=torch.bool)
    untouched[[0, 0, 1, 1], [1, 2, 4, 0]] = False
    assert torch.equal(actual[untouched], plain[untouched])


def test_experts_may_act_on_all_that_there_is():
    """On inputs of a model that has no columns."""
    model = edited()
    put_edits(model, prompts_of(1))
    layer = layer_of(model)
    layer.lemoe_open["default"].out_proj.data.normal_()
    acting = layer.act_on_all("default")
    assert (acting.width, acting.uses_open) == (EVERYTHING, True)
    for shape in ((3, HIDDEN), (2, 3, HIDDEN)):
        x = torch.randn(shape)
        with torch.no_grad():
            changed = layer._bypass("default", acting, x, torch.zeros(shape))
        assert (changed != 0).all()
