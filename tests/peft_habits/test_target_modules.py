"""`target_modules` may name a linear layer, as in LoRA; its sizes are the experts' sizes."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from torch import nn

from lemoe_hf import LEMoEConfig, LEMoELayer
from lemoe_hf.routing.context import RoutingContext
from lemoe_hf.routing.passes import Acting
from tiny import edited, logits, prompts_of, put_edits, tiny, unrelated


SUBJECT = (2, 4)


@pytest.mark.parametrize(
    ("family", "target", "sizes"),
    [
        ("llama", "down_proj", (48, 32)),
        ("llama", "up_proj", (32, 48)),
        ("gpt2", "mlp.c_fc", (32, 128)),
        ("opt", "fc2", (48, 32)),
    ],
)
@pytest.mark.parametrize("config", [{}, {"expert": "ffn"}, {"routing": "kv_anchor"}])
def test_a_linear_layer_has_experts_of_its_sizes(family, target, sizes, config, tmp_path):
    base = tiny(family)
    model = edited(family, target_modules=[target], layers_to_transform=[1], **config)
    prompts = prompts_of(3)
    put_edits(model, prompts, subjects=[SUBJECT] * 3)
    (layer,) = model.base_model.layers_of()
    assert (layer.in_features, layer.out_features) == sizes
    assert layer.lemoe_bank["default"].in_proj.shape == (3, sizes[0], 4)
    assert layer.lemoe_bank["default"].out_proj.shape == (3, 4, sizes[1])
    routed = logits(model, prompts)
    assert not torch.allclose(routed[:, -1], logits(base, prompts)[:, -1], atol=1e-3)
    assert torch.equal(logits(model, unrelated()), logits(base, unrelated()))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny(family), tmp_path), prompts), routed)


def test_rows_and_columns_in_one_dimension_are_told_apart():
    """OPT flattens its batch before the FFN: every row still has its own expert."""
    model, prompts = edited("opt", target_modules=["fc2"]), prompts_of(4)
    put_edits(model, prompts, subjects=[SUBJECT] * 4)
    together = logits(model, prompts)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(logits(model, prompt)[0], together[row], rtol=1e-4, atol=1e-4)


def test_a_layer_that_sees_some_of_the_tokens_is_refused():
    """As within a mixture of experts: whose tokens they are is not told."""
    layer = LEMoELayer(nn.Linear(8, 8), 8, RoutingContext(nn.Identity()))
    layer.update_layer("default", LEMoEConfig(), leads=True)
    ones = torch.ones(2, 1)
    acting = Acting.of([(0, [4]), (1, [3, 4])], ones.long(), ones, width=5, num_committed=0, uses_open=True)
    for tokens in (6, 5):  # neither whole rows, nor all of them
        with pytest.raises(ValueError, match=f"a Linear that is given {tokens} tokens of a batch of 5 columns"):
            layer._bypass("default", acting, torch.zeros(tokens, 8), torch.zeros(tokens, 8))
    assert layer._bypass("default", acting, torch.zeros(10, 8), torch.zeros(10, 8)).shape == (10, 8)
