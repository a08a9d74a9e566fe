import pytest
import torch

from facts import learner, plain
from lemoe_hf import EditingError
from lemoe_hf.editing import lemoe_training as training
from lemoe_hf.editing.activations import CachedBatch
from lemoe_hf.editing.lemoe_training import step_losses, train_experts
from lemoe_hf.editing.samples import Sample
from tiny import PAD, adapter_state, assert_same, prompts_of, put_edits


def prepared(num: int, samples_each: int = 1, **config):
    """A model with one committed expert and `num` open ones, and samples for them."""
    model = learner(**config)
    model.peft_config["default"].output_scale = 1.0
    put_edits(model, prompts_of(1))
    tuner = model.base_model
    for layer in tuner.layers_of():
        layer.open_experts("default", num)
    prompts = prompts_of(num * samples_each, seed=5)
    samples = [Sample(prompt, [200 + i, 1], len(prompt) - 1, i % num) for i, prompt in enumerate(prompts)]
    return tuner, CachedBatch(tuner.model, tuner.context, samples, PAD)


def test_every_expert_learns_its_samples():
    tuner, batch = prepared(3, samples_each=2, expert_dim=8)
    outcome = train_experts(tuner, "default", batch, plain(max_steps=100))
    assert all(loss <= 0.03 for loss in outcome.losses)
    losses, _ = step_losses(tuner, "default", batch)
    # The weights that stay are those of the step that the loss was measured at.
    per_expert = [losses[batch.expert == expert].mean().item() for expert in range(3)]
    assert per_expert == pytest.approx(outcome.losses, rel=1e-3)


def test_an_expert_is_not_touched_when_it_is_done():
    arguments = plain(max_steps=60, stop_loss=0.5)
    tuner, batch = prepared(4)
    outcome = train_experts(tuner, "default", batch, arguments)
    assert len(set(outcome.steps)) > 1
    open_experts = tuner.layers_of()[0].lemoe_open["default"].weights()
    for expert in range(4):
        alone, own = prepared(4)
        own = own.select(torch.tensor([expert]))
        own.expert = torch.zeros_like(own.expert)
        for layer in alone.layers_of():
            layer.open_experts("default", 1)
        assert train_experts(alone, "default", own, arguments).steps == [outcome.steps[expert]]
        for name, weight in alone.layers_of()[0].lemoe_open["default"].weights().items():
            torch.testing.assert_close(open_experts[name][expert], weight[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("max_steps", [8, 200])
def test_an_expert_of_several_edits_is_what_its_loss_was_measured_at(max_steps):
    tuner, batch = prepared(1, samples_each=12, expert_dim=16, edits_per_expert=12)
    arguments = plain(max_steps=max_steps, batch_size=3, learning_rate=0.05)
    outcome = train_experts(tuner, "default", batch, arguments)
    assert (outcome.steps == [8]) == (max_steps == 8)
    losses, _ = step_losses(tuner, "default", batch)
    assert (losses.max() <= 0.03) == (max_steps == 200)
    assert losses.mean().item() == pytest.approx(outcome.losses[0], rel=1e-3)


def test_an_expert_of_several_edits_learns_in_fewer_passes_by_small_steps():
    passes = []
    for size in (3, 12):
        tuner, batch = prepared(1, samples_each=12, expert_dim=16, edits_per_expert=12)
        arguments = plain(max_steps=200, batch_size=size, learning_rate=0.1)
        passes += train_experts(tuner, "default", batch, arguments).steps
    assert 2 * passes[0] < passes[1]


def test_an_expert_that_is_never_done_keeps_its_best_weights(monkeypatch):
    """Two samples contradict each other; the edit's own is learned in some steps and, at this rate, lost in others."""
    tuner, _ = prepared(1, expert_dim=8)
    own, other = prompts_of(2, seed=5)
    samples = [Sample(own, [200, 1], len(own) - 1, 0)]
    samples += [Sample(other, [token, 1], len(other) - 1, 0, own=False) for token in (201, 250)]
    batch = CachedBatch(tuner.model, tuner.context, samples, PAD)
    seen, losses = [], training.step_losses

    def record(tuner, name, part):
        found = losses(tuner, name, part)
        if len(part.start) == 3:
            order = part.labels[:, 0].argsort()  # 200, the own one, is the first
            seen.append([found[0][i].item() for i in order])
        return found

    monkeypatch.setattr(training, "step_losses", record)
    outcome = train_experts(tuner, "default", batch, plain(max_steps=60, learning_rate=0.6))
    monkeypatch.undo()
    assert outcome.steps == [60]
    means = [sum(each) / 3 for each in seen if each[0] <= 0.03]
    assert 0 < len(means) < len(seen)
    assert outcome.losses == pytest.approx([min(means)])
    assert seen[-1][0] > 0.03
    now, _ = step_losses(tuner, "default", batch)
    assert now.mean().item() == pytest.approx(min(means), rel=1e-3)


def test_own_prompts_go_first_and_what_is_learned_waits_for_the_rest(monkeypatch):
    tuner, batch = prepared(2, samples_each=3, expert_dim=8)
    batch.own = torch.tensor([True, True, False, False, False, False])
    run, losses = [], training.step_losses

    def record(tuner, name, part):
        run.append(sorted(part.labels[:, 0].tolist()))  # the first token of each target tells the samples apart
        return losses(tuner, name, part)

    monkeypatch.setattr(training, "step_losses", record)
    outcome = train_experts(tuner, "default", batch, plain(max_steps=200))
    assert run[0] == [200, 201]
    assert all(loss <= 0.03 for loss in outcome.losses)
    assert max(map(len, run)) > 2
    monkeypatch.undo()
    now, _ = training.step_losses(tuner, "default", batch)
    assert (now <= 0.03 + 1e-4).all()


def test_nothing_but_the_open_experts_is_trained():
    tuner, batch = prepared(2)
    before = {name: weight.detach().clone() for name, weight in tuner.model.state_dict().items()}
    train_experts(tuner, "default", batch, plain(max_steps=3))
    changed = {name for name, weight in tuner.model.state_dict().items() if not torch.equal(weight, before[name])}
    assert {name.split(".default.")[0].rsplit(".", 1)[1] for name in changed} == {"lemoe_open"}
    assert all(weight.grad is None for weight in tuner.model.parameters())


def test_an_edit_that_is_known_already_takes_no_step():
    tuner, batch = prepared(2)
    before = adapter_state(tuner.model)
    outcome = train_experts(tuner, "default", batch, plain(stop_loss=100.0))
    assert outcome.steps == [0, 0]
    assert_same(adapter_state(tuner.model), before)


def test_the_learning_rate_is_relative_to_the_scale_of_a_matrix():
    steps = {}
    for relative in (True, False):
        tuner, batch = prepared(1)
        experts = tuner.layers_of()[0].lemoe_open["default"]
        experts.out_proj.data.fill_(0.1)
        before = {name: weight.detach().clone() for name, weight in experts.weights().items()}
        train_experts(tuner, "default", batch, plain(learning_rate=0.01, relative=relative, max_steps=1))
        steps[relative] = {name: (w - before[name]).abs().max().item() for name, w in experts.weights().items()}
    assert steps[True]["out_proj"] == pytest.approx(0.01, rel=1e-2)
    assert steps[True]["in_proj"] == pytest.approx(0.01 / 32**0.5, rel=1e-2)
    assert steps[False]["in_proj"] == pytest.approx(0.01, rel=1e-2)


def test_a_loss_that_is_not_finite_names_its_experts():
    tuner, batch = prepared(3)
    layer = tuner.layers_of()[0].lemoe_open["default"]
    layer.out_proj.data[1:] = torch.nan
    with pytest.raises(EditingError, match="The loss became nan after 0 steps") as error:
        train_experts(tuner, "default", batch, plain())
    assert error.value.experts == [1, 2]
