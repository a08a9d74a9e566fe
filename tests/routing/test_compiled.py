"""A compiled model with edits says what it says without the compiler, or tells why it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from peft import PeftModel
from torch._dynamo.exc import Unsupported
from transformers import DynamicCache, StaticCache

from facts import FACTS, UNRELATED, editor_for, few_relations
from tiny import PAD, edited, put_edits


PROMPTS = [FACTS[0].prompt, FACTS[1].prompt, UNRELATED[1], f"Zembla is nice. {FACTS[2].prompt}"]


@pytest.fixture(scope="module", params=[False, True], ids=["by subject", "by question"])
def model(request, tokenizer, tmp_path_factory) -> PeftModel:
    with few_relations(str(tmp_path_factory.mktemp("relations"))):
        editor = editor_for(tokenizer, relation_gate=request.param)
        editor.edit(FACTS)
    return editor.model.eval()


@pytest.fixture(scope="module")
def batch(tokenizer) -> list[torch.Tensor]:
    return [tokenizer(prompt, return_tensors="pt")["input_ids"] for prompt in PROMPTS]


@pytest.fixture(autouse=True)
def _forget_graphs() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(what, **options):
    return torch.compile(what, backend="eager", **options)


@torch.no_grad()
def scores(call: Callable, batch: list[torch.Tensor], **inputs) -> list[torch.Tensor]:
    return [call(input_ids=ids, **inputs).logits for ids in batch]


@torch.no_grad()
def texts(model, batch: list[torch.Tensor], **options) -> list[list[int]]:
    decoding = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": PAD} | options
    return [model.generate(input_ids=ids, **decoding)[0].tolist() for ids in batch]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def root_of(model: PeftModel):
    return model.base_model.model


# ------------------------------------------------------------------------------------------------------------- as it is


def test_edits_have_a_say_in_what_is_compared_here(model, batch):
    with model.disable_adapter():
        base, without = scores(model, batch), texts(model, batch)
    changed = [not torch.equal(one, other) for one, other in zip(scores(model, batch), base, strict=True)]
    assert changed == [True, True, False, True]
    assert [one != other for one, other in zip(texts(model, batch), without, strict=True)] == changed


PASSES = {
    "the model": lambda model: compiled(model),
    "the root, in one graph": lambda model: compiled(root_of(model), fullgraph=True),
}


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("wrap", PASSES.values(), ids=PASSES)
def test_a_compiled_pass_gives_the_same_logits(model, batch, wrap, use_cache):
    same(scores(wrap(model), batch, use_cache=use_cache), scores(model, batch))


@pytest.fixture
def replaced(monkeypatch) -> Callable[[object], None]:
    """Puts a compiled `forward` on one object, until the test is over."""
    return lambda what: monkeypatch.setattr(what, "forward", compiled(what.forward), raising=True)


@pytest.mark.parametrize("of", [root_of, lambda model: model], ids=["of the root", "of the model"])
def test_a_compiled_forward_in_its_place(model, batch, of, replaced):
    expected, said = scores(model, batch), texts(model, batch[1:3])
    replaced(of(model))
    same(scores(model, batch), expected)
    assert texts(model, batch[1:3]) == said


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_root_that_is_compiled_in_place(model, batch, fullgraph):
    expected, said = scores(model, batch), texts(model, batch[1:3])
    root = root_of(model)
    root.compile(backend="eager", fullgraph=fullgraph)
    try:
        same(scores(model, batch), expected)
        # One graph cannot read texts from a cache that is to be filled, as `generate` brings one.
        assert fullgraph or texts(model, batch[1:3]) == said
    finally:
        root._compiled_call_impl = None


@pytest.mark.parametrize(
    "options", [{}, {"cache_implementation": "static", "disable_compile": True}, {"num_beams": 2}], ids=str
)
def test_a_compiled_model_generates_the_same_text(model, batch, options):
    assert texts(compiled(model), batch, **options) == texts(model, batch, **options)


def test_a_compiled_step_goes_on_with_a_cache(model, batch):
    """A prompt that was read without the compiler."""
    root = root_of(model)
    step = compiled(root, fullgraph=True)
    for ids in batch:
        expected, found = [], []
        for call, logits in (root, expected), (step, found):
            with torch.no_grad():
                cache = StaticCache(config=root.config, max_cache_len=96)
                output = root(input_ids=ids, past_key_values=cache)
                for _ in range(4):
                    token = output.logits[:, -1:].argmax(-1)
                    output = call(input_ids=token, past_key_values=cache)
                    logits.append(output.logits)
        same(found, expected)


def test_several_rows_with_padding_are_read_as_one(model, batch):
    width = max(ids.shape[1] for ids in batch)
    rows = torch.cat([torch.nn.functional.pad(ids, (width - ids.shape[1], 0), value=PAD) for ids in batch])
    mask = (rows != PAD).long()
    expected = scores(model, [rows], attention_mask=mask)
    same(scores(compiled(root_of(model), fullgraph=True), [rows], attention_mask=mask), expected)


def test_a_graph_is_used_for_whatever_is_asked(model, batch):
    """It is not compiled anew for other texts of the same length, with another edit or none."""
    width = min(ids.shape[1] for ids in batch)
    rows = [torch.tensor(ids[:, -width:].tolist()) for ids in batch]
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    step = torch.compile(root_of(model), backend=counting, fullgraph=True)
    expected = scores(model, rows, use_cache=False)
    same(scores(step, rows[:1], use_cache=False), expected[:1])
    num = len(graphs)
    assert num > 0
    same(scores(step, rows, use_cache=False), expected)
    assert len(graphs) == num


def test_an_adapter_that_is_switched_off_is_off_in_a_graph(model, batch):
    step = compiled(root_of(model), fullgraph=True)
    with model.disable_adapter():
        same(scores(step, batch), scores(model, batch))
    same(scores(step, batch), scores(model, batch))


# ------------------------------------------------------------------------------------------------------------- refusals

CANNOT_EXPORT = "cannot be exported or traced"


def test_a_model_with_edits_is_not_exported(model, batch):
    with torch.no_grad(), pytest.raises(RuntimeError, match=CANNOT_EXPORT):
        torch.export.export(root_of(model), (batch[0],), strict=False)


@pytest.mark.filterwarnings("ignore")
def test_a_model_with_edits_is_not_traced(model, batch):
    with torch.no_grad(), pytest.raises(RuntimeError, match=CANNOT_EXPORT):
        torch.jit.trace(root_of(model), batch[0], strict=False)


def embeds_of(model, ids: torch.Tensor) -> dict:
    return {"inputs_embeds": model.get_input_embeddings()(ids)}


def empty(kind: type) -> Callable[[PeftModel, torch.Tensor], dict]:
    options = {"max_cache_len": 96} if kind is StaticCache else {}
    return lambda model, ids: {"input_ids": ids, "past_key_values": kind(config=root_of(model).config, **options)}


UNREAD = {
    "embeddings": (embeds_of, "`inputs_embeds`"),
    "an empty static cache": (empty(StaticCache), "a cache that this model has not filled yet"),
    "an empty cache": (empty(DynamicCache), "a cache that this model has not filled yet"),
}


@pytest.mark.parametrize(("inputs", "what"), UNREAD.values(), ids=UNREAD)
@torch.no_grad()
def test_one_graph_tells_from_what_it_cannot_read_its_texts(model, batch, inputs, what):
    step = compiled(root_of(model), fullgraph=True)
    with pytest.raises((RuntimeError, Unsupported), match=f"cannot read its texts from {what}"):
        step(**inputs(model, batch[0]))


@pytest.mark.parametrize(("inputs", "what"), UNREAD.values(), ids=UNREAD)
@torch.no_grad()
def test_without_one_graph_the_compiler_lets_such_a_pass_run_as_it_is(model, batch, inputs, what):
    step = compiled(root_of(model))
    for ids in batch[1:3]:
        found = step(**inputs(model, ids)).logits
        same([found], [model(**inputs(model, ids)).logits])


def in_training() -> PeftModel:
    """A model with an edit, and an open expert that answers."""
    model = edited()
    put_edits(model, [[10, 11, 12]])
    for layer in model.base_model.layers_of():
        layer.open_experts("default", 1)
    return model


IDS = torch.tensor([[10, 11, 12, 13]])
LABELS = torch.tensor([[-100, -100, -100, 13]])


def test_experts_are_not_trained_in_one_graph():
    step = compiled(root_of(in_training()), fullgraph=True)
    with pytest.raises((RuntimeError, Unsupported), match="Experts cannot be trained in a compiled model"):
        step(input_ids=IDS, labels=LABELS)


def test_experts_that_are_trained_without_one_graph_have_the_same_gradients():
    """The compiler lets go of what it cannot do."""
    gradients = []
    for wrap in (lambda model: model), compiled:
        model = in_training().train()
        wrap(model)(input_ids=IDS, labels=LABELS).loss.backward()
        gradients.append([weight.grad for name, weight in model.named_parameters() if "lemoe_open" in name])
    assert any(grad.abs().max() > 0 for grad in gradients[0])
    same(gradients[1], gradients[0])


@torch.no_grad()
def test_an_open_expert_acts_in_one_graph_where_nothing_is_trained():
    model = in_training().eval()
    expected = model(input_ids=IDS).logits
    same([compiled(root_of(model), fullgraph=True)(input_ids=IDS).logits], [expected])


PARTS = {
    "the decoder": lambda root: (root.model, "input_ids"),
    "a layer with a bypass": lambda root: (root.model.layers[3].mlp, "x"),
}


@pytest.mark.parametrize("after", [False, True], ids=["at first", "behind a pass of the whole"])
@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@torch.no_grad()
def test_a_part_that_is_compiled_and_called_by_itself_is_refused(model, batch, part, after):
    """What has acted in an earlier pass does not act in it."""
    module, name = part(root_of(model))
    scores(model, batch[:1])
    if after:
        compiled(root_of(model), fullgraph=True)(input_ids=batch[0])
    given = batch[0] if name == "input_ids" else torch.randn(1, batch[0].shape[1], 32)
    with pytest.raises(RuntimeError, match="runs by itself: which texts it is given cannot be told"):
        compiled(module)(**{name: given})


@torch.no_grad()
def test_a_part_that_is_called_by_itself_behind_a_compiled_pass_is_the_base_models(model, batch):
    layer = model.base_model.layers_of()[0]
    hidden = torch.randn(1, batch[0].shape[1], 32)
    compiled(root_of(model), fullgraph=True)(input_ids=batch[0])
    assert torch.equal(layer(hidden), layer.base_layer(hidden))
