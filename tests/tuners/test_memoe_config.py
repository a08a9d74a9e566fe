"""What a config of MEMoE accepts, what it refuses and why."""

from __future__ import annotations

import pytest
from peft import PeftConfig
from peft.utils import PeftType

from lemoe_hf import LEMoEConfig, MEMoEConfig


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"expert": "mlp"}, "`expert` must be one of ffn, lora; got 'mlp'"),
        ({"expert_dim": 0}, "`expert_dim` must be a positive integer; got 0"),
        ({"num_experts": 0}, "`num_experts` must be a positive integer; got 0"),
        ({"top_k": 0}, "`top_k` must be a positive integer; got 0"),
        ({"top_k": 5}, "`top_k=5` experts cannot act on a token where `num_experts=4`"),
        ({"router_noise": -0.1}, "`router_noise` must not be negative; got -0.1"),
        ({"balance_loss": -1.0}, "`balance_loss` must not be negative"),
        ({"replay": -1}, "`replay` must not be negative"),
        ({"depth": 1.1}, "`depth` is a share"),
    ],
)
def test_a_wrong_value_is_refused_by_name(arguments, named):
    with pytest.raises(ValueError, match=named):
        MEMoEConfig(**arguments)


def test_the_published_noise_is_one_over_the_number_of_experts():
    assert MEMoEConfig.paper(num_experts=8).noise == 1 / 8
    assert MEMoEConfig().noise == 0.0
    assert MEMoEConfig(router_noise=0.3).noise == 0.3


def test_the_published_setting_has_nothing_of_ours():
    paper = MEMoEConfig.paper()
    assert (paper.deferral, paper.normalize, paper.replay, paper.balance_loss) == (False, False, 0, 0.0)
    assert (paper.num_experts, paper.top_k, paper.expert, paper.expert_dim) == (4, 1, "ffn", None)
    assert paper.depth == LEMoEConfig.paper().depth
    assert MEMoEConfig.paper(top_k=2).top_k == 2


def test_it_is_saved_and_found_again(tmp_path):
    config = MEMoEConfig(num_experts=6, top_k=2, balance_loss=0.01)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert type(loaded) is MEMoEConfig
    assert loaded.peft_type == PeftType.MEMOE
    assert loaded.to_dict() == config.to_dict()


@pytest.mark.parametrize(("of", "other"), [(MEMoEConfig, LEMoEConfig), (LEMoEConfig, MEMoEConfig)])
def test_the_config_of_another_method_is_refused(tmp_path, of, other):
    of().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"of type {of.method}, and {other.__name__} is of {other.method}"):
        other.from_pretrained(tmp_path)
    assert type(of.from_pretrained(tmp_path)) is of
