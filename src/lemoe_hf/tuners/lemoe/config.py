"""What a LEMoE adapter is: where it sits, what an expert is, how prompts find theirs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Optional

from ..config import EditingConfig, choice


@dataclass
class LEMoEConfig(EditingConfig):
    """
    Configuration of a [`LEMoEModel`]: a growing bank of frozen experts beside the feed-forward network (FFN) of a layer.

    The defaults are the best setting known to the authors, not the published one; [`LEMoEConfig.paper`] is the latter. Where
    an adapter sits, and which texts it leaves alone, is told by what all methods share, [`EditingConfig`].

    > What an expert is

    Args:
        expert (`str`, *optional*, defaults to `"lora"`):
            `"lora"`, a linear map of low rank, or `"ffn"`, a gated FFN as in the paper. Both start with an output of zero.
        expert_dim (`int`, *optional*, defaults to `4`):
            Rank of a LoRA expert or inner width of an FFN expert. `None` takes the width of the base model's own FFN.
        expert_dtype (`str`, *optional*, defaults to `"bfloat16"`):
            How committed experts are stored, in memory and on disk. An expert in training has the dtype PEFT gives it.
        edits_per_expert (`int`, *optional*, defaults to `1`):
            How many edits an expert takes before it is committed. With 1 every edit has an expert of its own, and nothing
            that is edited later can touch it. The paper fills experts with about 200.

    > How a prompt finds its expert

    Args:
        routing (`str`, *optional*, defaults to `"nearest_anchor"`):
            `"nearest_anchor"`: every edit leaves its subject and its prompt as anchors, and nothing about routing is
            trained. `"kv_anchor"`: the paper's, one learned key an expert against a projection of the mean embedding;
            `deferral=False` then routes every prompt, as published, and `relation_gate` has no say.
        top_k (`int`, *optional*, defaults to `1`):
            Number of experts mixed for a prompt (`"kv_anchor"` only).
        anchor_dim (`int`, *optional*):
            Width of the projection and of the keys (`"kv_anchor"` only). By default a quarter of the hidden size.
        gate_value (`str`, *optional*, defaults to `"one"`):
            Weight of the chosen experts (`"kv_anchor"` only): `"one"` (renormalised over the `top_k`), or `"softmax"`, the
            paper's, which dilutes old experts as new ones come.
        projection (`str`, *optional*, defaults to `"shared_frozen"`):
            Which projection feeds the keys (`"kv_anchor"` only): `"shared"`, the paper's, trained again with every expert
            so that old anchors drift; `"shared_frozen"`, trained with the first expert only; `"per_expert"`.
        train_route (`str`, *optional*, defaults to `"forced"`):
            Which expert an edit in training passes (`"kv_anchor"` only): always the open one (`"forced"`), or the router's
            choice (`"free"`, the paper's, which can starve a new expert).
        router_loss (`float`, *optional*, defaults to `1.0`):
            Weight of the cross-entropy of the router towards the open expert (`"kv_anchor"` only). The paper has none. In a
            training loop it is part of the model's own `loss`, and the loop must pass `labels`: nothing else trains the keys
            where gates are one.
        router_replay (`bool`, *optional*, defaults to `True`):
            Let the router loss see the stored anchors of earlier edits too (`"kv_anchor"` only).

    > State, written by the model and read when an adapter is loaded

    Args:
        num_experts (`int`): Committed experts in the bank.
        num_open_experts (`int`): Experts in training.
        num_router_anchors (`int`): Anchors that a router with keys has stored.
    """

    expert: Literal["lora", "ffn"] = choice("lora", ("lora", "ffn"), "Form of an expert.")
    expert_dim: Optional[int] = 4
    expert_dtype: str = choice("bfloat16", ("bfloat16", "float16", "float32"), "Storage of committed experts.")
    edits_per_expert: int = 1

    routing: Literal["nearest_anchor", "kv_anchor"] = choice(
        "nearest_anchor", ("nearest_anchor", "kv_anchor"), "How a prompt finds its expert."
    )
    top_k: int = 1
    anchor_dim: Optional[int] = None
    gate_value: str = choice("one", ("one", "softmax"), "Weight of the chosen experts.")
    projection: str = choice("shared_frozen", ("shared", "shared_frozen", "per_expert"), "Projection of the router.")
    train_route: str = choice("forced", ("forced", "free"), "Expert of an edit in training.")
    router_loss: float = 1.0
    router_replay: bool = True

    num_experts: int = 0
    num_open_experts: int = 1
    num_router_anchors: int = 0

    method: ClassVar[str] = "LEMOE"
    positive: ClassVar[tuple[str, ...]] = ("edits_per_expert", "top_k", "expert_dim", "anchor_dim")

    def __post_init__(self):
        super().__post_init__()
        if not self.deferral and self.routing != "kv_anchor":
            raise ValueError(
                "`deferral=False` needs `routing='kv_anchor'`: the nearest anchor of a prompt that shares nothing with "
                "any edit is not defined."
            )
        if self.top_k > 1 and self.routing != "kv_anchor":
            raise ValueError(f"`top_k={self.top_k}` needs `routing='kv_anchor'`; the nearest anchor has one expert.")

    @property
    def asks_relation(self) -> bool:
        return self.relation_gate and self.routing == "nearest_anchor"

    @property
    def finds_names(self) -> bool:
        return self.routing == "nearest_anchor"

    @property
    def edits_alone(self) -> bool:
        return self.edits_per_expert == 1

    @classmethod
    def paper(cls, **overrides) -> LEMoEConfig:
        """The setting published as LEMoE (EMNLP 2024, sections 4.1 and 4.2), and nothing of ours.

        Layer 18 of 32, experts as wide as the base FFN with about 200 edits each, KV anchor routing with one projection
        that keeps training, softmax gates, top 1, no router loss and no deferral.
        """
        published = {
            "depth": 18 / 32,
            "expert": "ffn",
            "expert_dim": None,
            "expert_dtype": "float32",
            "edits_per_expert": 200,
            "normalize": False,
            "routing": "kv_anchor",
            "gate_value": "softmax",
            "projection": "shared",
            "train_route": "free",
            "router_loss": 0.0,
            "router_replay": False,
            "deferral": False,
        }
        return cls(**{**published, **overrides})
