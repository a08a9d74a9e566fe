"""What a config accepts, what it refuses and why."""

from __future__ import annotations

import json

import pytest
from peft import PeftConfig, TaskType
from peft.utils import PeftType

from lemoe_hf import LEMoEConfig


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"expert": "mlp"}, "`expert` must be one of lora, ffn; got 'mlp'"),
        ({"expert_dtype": "int8"}, "`expert_dtype` must be one of"),
        ({"routing": "nearest"}, "`routing` must be one of"),
        ({"gate_value": "sigmoid"}, "`gate_value` must be one of"),
        ({"projection": "none"}, "`projection` must be one of"),
        ({"train_route": "both"}, "`train_route` must be one of"),
        ({"expert_dim": 0}, "`expert_dim` must be a positive integer; got 0"),
        ({"edits_per_expert": 0}, "`edits_per_expert` must be a positive integer"),
        ({"top_k": 0, "routing": "kv_anchor"}, "`top_k` must be a positive integer"),
        ({"anchor_dim": -1}, "`anchor_dim` must be a positive integer"),
        ({"depth": 1.1}, "`depth` is a share"),
        ({"depth": -0.1}, "`depth` is a share"),
        ({"threshold": 0.0}, "`threshold` is a share"),
        ({"threshold": 1.5}, "`threshold` is a share"),
        ({"deferral": False}, "`deferral=False` needs `routing='kv_anchor'`"),
        ({"top_k": 2}, "`top_k=2` needs `routing='kv_anchor'`"),
    ],
)
def test_a_wrong_value_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named.replace("(", r"\(")):
        LEMoEConfig(**arguments)


@pytest.mark.parametrize("arguments", [{"threshold": 1.0}, {"depth": 0}, {"depth": 1}, {"anchor_dim": 1}])
def test_the_ends_of_a_range_are_accepted(arguments):
    LEMoEConfig(**arguments)


def test_the_task_is_a_causal_language_model_unless_modules_are_named():
    """Which may be of any model; a task that is given stays."""
    assert LEMoEConfig().task_type == TaskType.CAUSAL_LM
    assert LEMoEConfig(target_modules=["mlp"]).task_type is None
    assert LEMoEConfig(target_modules=["mlp"], task_type="CAUSAL_LM").task_type == TaskType.CAUSAL_LM


def test_lists_of_modules_become_sets():
    config = LEMoEConfig(target_modules=["mlp"], exclude_modules=["lm_head"])
    assert config.peft_type == PeftType.LEMOE
    assert config.target_modules == {"mlp"}
    assert config.exclude_modules == {"lm_head"}
    assert LEMoEConfig(target_modules=r".*\.mlp").target_modules == r".*\.mlp"


def test_paper_sets_what_is_published_and_nothing_of_ours():
    config = LEMoEConfig.paper()
    assert (config.routing, config.gate_value, config.projection) == ("kv_anchor", "softmax", "shared")
    assert (config.train_route, config.router_loss, config.router_replay) == ("free", 0.0, False)
    assert (config.expert, config.expert_dim, config.expert_dtype) == ("ffn", None, "float32")
    assert (config.top_k, config.lam, config.depth) == (1, 1.0, 18 / 32)
    assert not config.normalize
    assert not config.deferral


def test_paper_takes_overrides():
    assert LEMoEConfig.paper(edits_per_expert=10, top_k=2).edits_per_expert == 10


def test_a_config_survives_the_disk(tmp_path):
    config = LEMoEConfig.paper(num_experts=3, num_anchors=5, output_scale=0.25, target_modules=["a", "b"])
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LEMOE"
    for loaded in (PeftConfig.from_pretrained(tmp_path), LEMoEConfig.from_pretrained(tmp_path)):
        assert isinstance(loaded, LEMoEConfig)
        own = config.to_dict() | {"target_modules": {"a", "b"}, "inference_mode": loaded.inference_mode}
        assert loaded.to_dict() == own
        assert loaded.peft_type == PeftType.LEMOE
