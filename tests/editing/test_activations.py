import pytest
import torch
import torch.nn.functional as F

from lemoe_hf import structure
from lemoe_hf.editing.activations import CachedBatch
from lemoe_hf.editing.samples import Sample
from lemoe_hf.editing.trunk import Trunk, reusable
from lemoe_hf.generation import pad_right
from lemoe_hf.routing.passes import Acting
from tiny import CONFIGS, PAD, edited, prompts_of, put_edits


# Prompts and targets of several lengths, an expert with two samples, starts from the first token to the prompt's last.
SAMPLES = [
    Sample([20, 21, 22, 23, 24, 25, 26], [30, 31, 32], start=4, expert=0),
    Sample([40, 41, 42], [50], start=2, expert=1),
    Sample([60, 61, 62, 63, 64, 65, 66, 67, 68], [70, 71], start=0, expert=2),
    Sample([80, 81, 82, 83], [90, 91, 92, 93], start=1, expert=1),
]


def model_in_training(family: str):
    """A model with two committed experts and three random open ones."""
    model = edited(family)
    put_edits(model, prompts_of(2))
    layer = model.base_model.layers_of()[0]
    layer.open_experts("default", 3)
    generator = torch.Generator().manual_seed(3)
    for weight in layer.lemoe_open["default"].weights().values():
        weight.data.copy_(torch.randn(weight.shape, generator=generator) / 4)
    return model


def batch_for(model, samples=SAMPLES, reuse=True, from_start=True) -> CachedBatch:
    return CachedBatch(model.base_model.model, model.base_model.context, samples, PAD, reuse, from_start)


def reusable_of(model, samples=SAMPLES) -> tuple[bool, float]:
    return reusable(model.base_model.model, model.base_model.context, samples, PAD)


def gradients(model, losses) -> list[torch.Tensor]:
    weights = list(model.base_model.layers_of()[0].lemoe_open["default"].weights().values())
    return list(torch.autograd.grad(losses.sum(), weights))


def plain_losses(model, samples=SAMPLES) -> torch.Tensor:
    """One whole forward pass over right-padded texts, with every sample's expert from its start on."""
    ids, mask = pad_right([sample.prompt + sample.target for sample in samples], PAD, torch.device("cpu"))
    acting = Acting.of(
        [(row, list(range(sample.start, ids.shape[1]))) for row, sample in enumerate(samples)],
        experts=2 + torch.tensor([[sample.expert] for sample in samples]),
        gates=torch.ones(len(samples), 1),
        width=ids.shape[1],
        num_committed=2,
        uses_open=True,
    )
    with model.base_model.context.imposed({"default": acting}):
        logits = model.base_model.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    losses = []
    for row, sample in enumerate(samples):
        columns = slice(len(sample.prompt) - 1, len(sample.prompt) + len(sample.target) - 1)
        losses.append(F.cross_entropy(logits[row, columns], torch.tensor(sample.target)))
    return torch.stack(losses)


def cached_losses(batch: CachedBatch) -> torch.Tensor:
    return batch.losses(batch.logits({"default": batch.acting(2)}))


@pytest.mark.parametrize("from_start", [True, False])
@pytest.mark.parametrize("family", CONFIGS)
def test_a_step_gives_the_losses_and_gradients_of_a_whole_forward_pass(family, from_start):
    model = model_in_training(family)
    reuse, num_columns = reusable_of(model)
    assert reuse
    assert (num_columns > 0) == (family not in ("bloom", "mamba"))
    batch = batch_for(model, from_start=from_start and num_columns > 0)
    expected = plain_losses(model)
    for _ in range(2):  # a step must leave what is cached as it was
        losses = cached_losses(batch)
        torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-4)
        wanted = gradients(model, plain_losses(model))
        assert all(gradient.abs().max() > 1e-3 for gradient in wanted)
        torch.testing.assert_close(gradients(model, losses), wanted, rtol=1e-4, atol=1e-4)


def test_a_step_of_one_column_is_not_taken_for_decoding():
    model = model_in_training("llama")
    losses = cached_losses(batch_for(model, SAMPLES[1:2]))
    torch.testing.assert_close(losses, plain_losses(model, SAMPLES[1:2]), rtol=1e-4, atol=1e-4)
    assert gradients(model, losses)[0].abs().max() > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_without_reuse_the_result_is_the_same(family):
    model = model_in_training(family)
    slow, fast = batch_for(model, reuse=False), batch_for(model)
    torch.testing.assert_close(cached_losses(slow), cached_losses(fast), rtol=1e-4, atol=1e-4)


def test_a_step_computes_no_more_than_it_must():
    model = model_in_training("llama")
    seen = []
    stack = structure.find_stack(model.base_model.model)[1]
    batch = batch_for(model)
    for block in stack:
        block.mlp.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[:2])))
    logits = batch.logits({"default": batch.acting(2)})
    # Only the bypassed last layer runs, from the earliest start to the longest target, and the head sees targets only.
    assert seen == [(4, 10)]
    assert logits.shape[0] == sum(len(sample.target) for sample in SAMPLES)


@pytest.mark.parametrize(("reuse", "from_start"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("rows", [[1, 3], [2], [0, 1, 2, 3]])
def test_select_equals_a_batch_of_those_samples(reuse, from_start, rows):
    model = model_in_training("llama")
    part = batch_for(model, reuse=reuse, from_start=from_start).select(torch.tensor(rows))
    whole = batch_for(model, [SAMPLES[row] for row in rows], reuse, from_start)
    assert part.expert.tolist() == whole.expert.tolist()
    assert part.is_target.tolist() == whole.is_target.tolist()
    assert part.labels[part.is_target].tolist() == whole.labels[whole.is_target].tolist()
    torch.testing.assert_close(cached_losses(part), cached_losses(whole), rtol=1e-4, atol=1e-4)
    wanted = gradients(model, cached_losses(whole))
    torch.testing.assert_close(gradients(model, cached_losses(part)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
@pytest.mark.parametrize("cut", [1, 2])
def test_batches_that_are_joined_equal_one_batch(family, cut):
    model = model_in_training(family)
    from_start = reusable_of(model)[1] > 0
    parts = [batch_for(model, samples, from_start=from_start) for samples in (SAMPLES[:cut], SAMPLES[cut:])]
    whole = CachedBatch.concat(parts)
    torch.testing.assert_close(cached_losses(whole), plain_losses(model), rtol=1e-4, atol=1e-4)
    last = whole.select(torch.tensor([3]))
    torch.testing.assert_close(cached_losses(last), plain_losses(model, SAMPLES[3:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_tokens_that_all_texts_begin_with_are_run_once(family):
    model, shared = model_in_training(family), list(range(100, 112))
    samples = [
        Sample([*shared, *sample.prompt], sample.target, len(shared) + sample.start, sample.expert)
        for sample in SAMPLES
    ]
    seen = []
    first = structure.find_stack(model.base_model.model)[1][0]
    first.register_forward_hook(lambda module, args, output: seen.append(tuple(args[0].shape[:2])))
    batch = batch_for(model, samples)
    assert seen == [(1, 12), (4, 11)]
    torch.testing.assert_close(cached_losses(batch), plain_losses(model, samples), rtol=1e-4, atol=1e-4)


def test_select_of_a_selection():
    model = model_in_training("llama")
    twice = batch_for(model).select(torch.tensor([0, 2, 3])).select(torch.tensor([1]))
    torch.testing.assert_close(cached_losses(twice), plain_losses(model, SAMPLES[2:3]), rtol=1e-4, atol=1e-4)


def test_gates_weigh_the_expert():
    model = model_in_training("llama")
    batch = batch_for(model)
    off = batch.logits({"default": batch.acting(2, gates=torch.zeros(4, 1))})
    torch.testing.assert_close(off, batch.logits({}), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(off, batch.logits({"default": batch.acting(2)}), atol=1e-2)


@pytest.mark.parametrize("family", ["llama", "opt", "mamba"])
def test_nothing_stays_replaced_after_an_exception(family):
    model = model_in_training(family)
    root = model.base_model.model
    batch = batch_for(model, from_start=reusable_of(model)[1] > 0)
    modules = {name: dict(vars(module)) for name, module in root.named_modules()}
    hooks = {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in root.named_modules()
    }
    before = root(input_ids=torch.tensor([[5, 6, 7]])).logits

    def interrupt(module, args, output):
        raise KeyboardInterrupt

    handle = model.base_model.layers_of()[0].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        batch.logits({"default": batch.acting(2)})
    handle.remove()
    assert all("forward" not in vars(module) or "forward" in modules[name] for name, module in root.named_modules())
    assert hooks == {
        name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in root.named_modules()
    }
    assert torch.equal(root(input_ids=torch.tensor([[5, 6, 7]])).logits, before)


def test_a_forward_that_was_replaced_before_is_put_back():
    model = model_in_training("llama")
    block = structure.find_stack(model.base_model.model)[1][0]
    block.forward = wrapped = lambda *args, forward=block.forward, **kwargs: forward(*args, **kwargs)
    batch = batch_for(model)
    cached_losses(batch)
    assert block.forward is wrapped


def test_the_attention_window_bounds_what_is_reused():
    model = model_in_training("gemma3")
    assert reusable_of(model) == (True, 512)
    long = Sample(list(range(10, 210)) * 3, [5, 6], start=590, expert=0)
    assert reusable_of(model, [long]) == (True, 0)


def test_keys_and_values_are_reused_up_to_the_attention_window():
    model = model_in_training("gemma3")
    trunk = Trunk(model.base_model.model, model.base_model.context, PAD)
    words = [10 + i * 7 % 90 for i in range(600)]

    def run(length: int, start: int):
        long = Sample(words[:length], [5, 6], start, expert=0)
        batch, rows = trunk.run([[long], [Sample([20, 21, 22, 23], [30], start=2, expert=1)]])
        torch.testing.assert_close(cached_losses(batch), plain_losses(model, rows))
        assert batch.reuse
        return batch.from_start

    assert run(509, start=300)  # 511 columns in all
    assert not run(510, start=300)
    assert not run(600, start=590)
    assert run(300, start=250)


def test_whole_sequences_that_begin_alike_keep_their_beginning():
    model, shared = model_in_training("llama"), list(range(100, 112))
    samples = [
        Sample([*shared, *sample.prompt], sample.target, len(shared) + sample.start, sample.expert)
        for sample in SAMPLES
    ]
    losses = cached_losses(batch_for(model, samples, from_start=False))
    torch.testing.assert_close(losses, plain_losses(model, samples), rtol=1e-4, atol=1e-4)


def test_of_what_a_layer_returns_only_hidden_states_are_kept():
    """Anything else has the rows and columns of the pass that it came from, and a step has others."""
    batch = batch_for(model_in_training("bloom"), from_start=False)
    assert len(batch.hidden) > 1
    assert not any(each is not None for each in batch.hidden[1:])


def test_building_a_batch_leaves_no_hook_when_it_fails(monkeypatch):
    model = model_in_training("llama")
    blocks = structure.find_stack(model.base_model.model)[1]
    monkeypatch.setattr(model.base_model.model.lm_head, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        batch_for(model)
    assert not any(block._forward_hooks for block in blocks)


def test_want_of_memory_is_not_taken_for_an_architecture_that_reuses_nothing(monkeypatch):
    model = edited()

    def fail(self, *args):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(CachedBatch, "_run_frozen", fail)
    with pytest.raises(torch.OutOfMemoryError):
        reusable_of(model)
