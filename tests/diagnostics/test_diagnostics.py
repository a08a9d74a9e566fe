"""What superposition says of facts, against direct computation; what it predicts; what it plans."""

from __future__ import annotations

import builtins
from itertools import permutations

import pytest
import torch

from lemoe_hf import Edit, RankOneEditor
from lemoe_hf.diagnostics import (
    Superposition,
    Whitening,
    bound_pairs,
    by_descending_norm,
    keys_of,
    kurtosis,
    layer_profile,
    order_cost,
    plan_by_cost,
    predict_interference,
    second_moments,
    superposition_report,
)
from lemoe_hf.diagnostics.superposition import off_diagonal
from lemoe_hf.rank_one.update import weight_of
from rank_one.wrote import EDITS, arguments, steep, weights
from tiny import SENTENCES, edited, prompts_of, put_edits, tiny


FACTS = [*EDITS, Edit("This is Port Ellen, where", "the", subject="Port Ellen")]


def matrices(num: int = 5, width: int = 8) -> tuple[torch.Tensor, torch.Tensor, Superposition]:
    inputs = torch.randn(100, width, dtype=torch.double) @ torch.randn(width, width, dtype=torch.double)
    keys, moment = torch.randn(num, width, dtype=torch.double), inputs.T @ inputs
    return keys, torch.linalg.inv(moment), Superposition.of(keys, Whitening(moment, 0))


def test_matrices_are_the_papers_pair_by_pair():
    keys, inverse, found = matrices()
    for i, a in enumerate(keys):
        for j, b in enumerate(keys):
            assert found.p[i, j].item() == pytest.approx(
                (a @ inverse @ b / (a @ inverse @ a)).item(), rel=1e-4, abs=1e-5
            )
            assert found.q[i, j].item() == pytest.approx((a @ b).item(), rel=1e-4, abs=1e-5)
            cosine = a @ inverse @ b / ((a @ inverse @ a) * (b @ inverse @ b)).sqrt()
            assert found.whitening[i, j].item() == pytest.approx(cosine.item(), rel=1e-4, abs=1e-5)
            assert found.activation[i, j].item() == pytest.approx((a @ b / a.norm() / b.norm()).item(), abs=1e-5)


def test_kurtosis_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")  # comes with scikit-learn
    values = torch.randn(500) ** 3
    assert kurtosis(values) == pytest.approx(stats.kurtosis(values.numpy()), rel=1e-5)
    assert abs(kurtosis(torch.randn(200_000))) < 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_a_report_is_of_the_base_models_keys(family: str, tokenizer):
    model = tiny(family)
    before = weights(model)
    report = superposition_report(model, tokenizer, FACTS, 2, SENTENCES)
    keys = keys_of(model, tokenizer, FACTS, [2])[2]
    expected = Superposition.of(keys, Whitening(second_moments(model, tokenizer, [2], SENTENCES)[2]))
    assert torch.equal(report.matrices.p, expected.p)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(model).items())
    figures = report.to_dict()
    assert figures["mean"] == pytest.approx(off_diagonal(expected.p).mean().item())
    assert figures["share_above_0.1"] == pytest.approx((off_diagonal(expected.p).abs() > 0.1).float().mean().item())


def test_one_subject_is_one_key_and_two_targets_of_it_are_a_conflict(tokenizer):
    report = superposition_report(tiny(), tokenizer, FACTS, 1, SENTENCES)
    (pair, *_) = [pair for pair in report.pairs if (pair.first, pair.second) == (1, 4)]
    assert pair.p == pytest.approx(1, abs=1e-3)
    assert pair in report.conflicts
    assert "'the' would take the place of 'Tom'" in str(report)
    top = report.top_pairs(1)[0]
    assert max(abs(top["p"]), abs(top["reversed"])) == pytest.approx(
        off_diagonal(report.matrices.p).abs().max().item()
    )


def test_facts_of_one_target_are_bound_and_no_conflict():
    edits = [Edit("a b", "X", subject="b"), Edit("c b", "x ", subject="b"), Edit("d b", "Y", subject="b")]
    p = torch.tensor([[1.0, 0.9, 0.1], [0.2, 1.0, 0.79], [0.1, 0.85, 1.0]])
    found = bound_pairs(edits, p)
    assert [(pair.first, pair.second, pair.is_conflict) for pair in found] == [(0, 1, False), (1, 2, True)]
    assert found[0].p == pytest.approx(0.9)


def test_adapters_play_no_part(tokenizer):
    model = edited()
    put_edits(model, prompts_of(2))
    expected = superposition_report(tiny(), tokenizer, FACTS, 3, SENTENCES)
    assert torch.allclose(superposition_report(model, tokenizer, FACTS, 3, SENTENCES).matrices.p, expected.matrices.p)


def test_a_profile_has_a_row_a_layer(tokenizer):
    rows = layer_profile(tiny(), tokenizer, FACTS, data=SENTENCES)
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    alone = superposition_report(tiny(), tokenizer, FACTS, 2, SENTENCES).matrices.figures()
    assert rows[2] == {"layer": 2, **alone}


@pytest.mark.parametrize("seed", range(3))
def test_a7_descending_norm_is_the_best_of_all_orders(seed: int):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(6, 4, generator=generator, dtype=torch.double)
    norms = torch.rand(6, generator=generator, dtype=torch.double) + 0.1
    gram = keys @ keys.T
    best = min(order_cost(gram, norms, order) for order in permutations(range(6)))
    assert order_cost(gram, norms, by_descending_norm(norms)) == pytest.approx(best)
    assert order_cost(gram, norms, list(reversed(by_descending_norm(norms)))) > 1.05 * best


def test_the_cost_of_an_order_is_what_later_edits_do_to_earlier_ones():
    gram = torch.tensor([[2.0, -0.5, 0.25], [-0.5, 1.0, 1.0], [0.25, 1.0, 3.0]])
    norms = torch.tensor([1.0, 10.0, 100.0])
    assert order_cost(gram, norms, [0, 1, 2]) == pytest.approx(0.5 * 10 + (0.25 + 1) * 100)
    assert order_cost(gram, norms, [2, 0, 1]) == pytest.approx(0.25 * 1 + (1 + 0.5) * 10)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_interference_is_what_an_edit_does(family: str, tokenizer):
    """The change of the matrix's output at another fact, over its length, is what was predicted."""
    model, settings = steep(family), arguments(layer=1, contexts=())
    found = predict_interference(
        model, tokenizer, EDITS[:2], [*EDITS[2:], ("This is Port Ellen", "Port Ellen")], 1, settings, SENTENCES
    )
    assert found.bound == [(1, 2)]
    keys = keys_of(model, tokenizer, found.protected, [1])[1].double()
    for i, edit in enumerate(EDITS[:2]):
        editor = RankOneEditor(steep(family), tokenizer, settings, SENTENCES)
        name = editor.layers.names([1])[1]
        before = weight_of(editor.root.get_submodule(name)).double()
        editor.edit(edit)
        change = (weight_of(editor.root.get_submodule(name)).double() - before) @ keys.T
        damage = change.norm(dim=0) / (before @ keys.T).norm(dim=0)
        torch.testing.assert_close(found.damage[i].double(), damage, rtol=1e-3, atol=1e-5)
    assert found.worst(1)[0]["damage"] == pytest.approx(found.damage.max().item())
    assert "cannot be edited without" in str(found)


def test_an_order_is_planned_by_what_edits_write(tokenizer):
    settings = arguments(layer=1, contexts=())
    plan = plan_by_cost(steep(), tokenizer, EDITS, 1, settings, SENTENCES)
    assert plan.norms[plan.permutation[0]] == max(plan.norms)
    assert plan.edits == [EDITS[i] for i in plan.permutation]
    assert plan.cost <= plan.cost_as_given
    editor = RankOneEditor(steep(), tokenizer, settings, SENTENCES)
    (update,) = editor.edit(EDITS[0])
    # What is written, in the unit in which what is read is not normalised.
    unit = editor.layers.whitening(1).solve(update.key[None])[0].norm()
    assert plan.norms[0] == pytest.approx((update.right.norm() / unit).item(), rel=1e-3)


def test_what_cannot_be_looked_at_is_refused(tokenizer):
    with pytest.raises(ValueError, match="two facts or more; got 1"):
        superposition_report(tiny(), tokenizer, EDITS[:1])
    with pytest.raises(ValueError, match=r"asks for \[7\]"):
        superposition_report(tiny(), tokenizer, EDITS, 7, SENTENCES)
    with pytest.raises(ValueError, match="is a mixture of experts"):
        layer_profile(tiny("qwen3_moe"), tokenizer, EDITS)
    with pytest.raises(ValueError, match="does not tell its own"):
        superposition_report(tiny(), tokenizer, [*EDITS, Edit("Where is Port Ellen?", "x")], 1, SENTENCES)
    with pytest.raises(ValueError, match=r"rank \d+ of 48"):
        superposition_report(tiny(), tokenizer, EDITS, 1, SENTENCES[:2], ridge=0)
    with pytest.raises(ValueError, match="nothing to protect"):
        predict_interference(tiny(), tokenizer, EDITS, [], 1)
    with pytest.raises(ValueError, match=r"one for each edit, at layer 1; got 0"):
        predict_interference(tiny(), tokenizer, EDITS, EDITS, 1, data=SENTENCES, updates=[])


def test_a_figure_is_drawn_or_tells_what_it_needs(tokenizer, tmp_path, monkeypatch):
    report = superposition_report(tiny(), tokenizer, FACTS, 1, SENTENCES)
    own = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return own(name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without_matplotlib)
        with pytest.raises(ImportError, match=r"pip install lemoe_hf\[plot\]"):
            report.plot(tmp_path / "report.svg")
    pytest.importorskip("matplotlib")
    report.plot(tmp_path / "report.svg", layer_profile(tiny(), tokenizer, FACTS, data=SENTENCES))
    assert "<svg" in (tmp_path / "report.svg").read_text()
