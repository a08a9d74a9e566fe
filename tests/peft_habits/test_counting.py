"""What is trainable, what is committed, what there is in all: by the functions that a PEFT user asks."""

from __future__ import annotations

from peft import get_layer_status, get_model_status

from lemoe_hf import LEMoEConfig
from tiny import HIDDEN, edited, prompts_of, put_edits, tiny


EXPERT = 2 * 4 * HIDDEN  # two projections of rank 4


def test_committed_experts_are_told_from_the_open_one(capsys):
    model = edited()
    base = sum(weight.numel() for weight in tiny().parameters())
    for committed in (0, 3):
        assert model.get_nb_trainable_parameters() == (EXPERT, base + EXPERT)
        assert model.get_nb_expert_parameters() == (EXPERT, committed * EXPERT)
        if not committed:
            put_edits(model, prompts_of(3))
    model.print_trainable_parameters()
    assert f"trainable params: {EXPERT:,d} || all params: {base + EXPERT:,d}" in capsys.readouterr().out


def test_counts_are_of_one_adapter_in_all_its_layers():
    model = edited(layers_to_transform=[1, 3], expert="ffn")
    model.add_adapter("other", LEMoEConfig())
    put_edits(model, prompts_of(2))
    gated = 3 * 4 * HIDDEN
    assert model.get_nb_expert_parameters() == (2 * gated, 2 * 2 * gated)
    assert model.get_nb_expert_parameters("other") == (EXPERT, 0)


def test_the_repr_tells_experts_in_training_from_committed_ones():
    model = edited(expert_dtype="bfloat16")
    put_edits(model, prompts_of(3))
    text = repr(model)
    sizes = f"in_features={HIDDEN}, width=4, out_features={HIDDEN}"
    assert "lemoe.LEMoELayer(" in text
    assert f"Experts(1 in training, {sizes}, dtype=torch.float32)" in text
    assert f"Experts(3 committed, {sizes}, dtype=torch.bfloat16)" in text


def test_the_status_of_layers_and_model():
    model = edited()
    put_edits(model, prompts_of(3))
    model.add_adapter("other", LEMoEConfig(layers_to_transform=[1]))
    early, late = get_layer_status(model)
    assert (late.name, late.module_type, late.enabled) == ("model.model.layers.3.mlp", "lemoe.LEMoELayer", True)
    assert (early.available_adapters, late.available_adapters) == (["other"], ["default"])
    assert late.requires_grad == {"default": True}
    status = get_model_status(model)
    assert (status.adapter_model_type, status.num_adapter_layers) == ("LEMoEModel", 2)
    assert status.peft_types == {"default": "LEMOE", "other": "LEMOE"}
    assert status.requires_grad == {"default": True, "other": False}
    assert (status.trainable_params, status.active_adapters) == (EXPERT, ["default"])
    with model.disable_adapter():
        assert not get_model_status(model).enabled
