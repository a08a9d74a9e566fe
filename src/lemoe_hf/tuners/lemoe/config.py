"""What a LEMoE adapter is: where it sits, what an expert is, how prompts find theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, Optional, Union

from peft import PeftConfig, TaskType
from peft.utils import PeftType

from ...card import complete_card
from .ledger import read_ledger


def choice(default: str, allowed: tuple[str, ...], help: str):
    return field(default=default, metadata={"help": f"{help} One of {', '.join(allowed)}.", "choices": allowed})


@dataclass
class LEMoEConfig(PeftConfig):
    """
    Configuration of a [`LEMoEModel`]: a growing bank of frozen experts beside the feed-forward network (FFN) of a layer.

    The defaults are the best setting known to the authors, not the published one; [`LEMoEConfig.paper`] is the latter.

    > Where the experts sit

    Args:
        task_type (`str`, *optional*):
            By default `"CAUSAL_LM"` or, if `target_modules` names modules, which may be of any model, none.
        target_modules (`list[str]` or `str`, *optional*):
            Names (or one regular expression) of the modules to bypass, as in every PEFT method. By default the FFN of one
            layer, found by structure; a layer without a single FFN module is bypassed as a whole.
        exclude_modules (`list[str]` or `str`, *optional*):
            Names (or one regular expression) of modules to leave alone.
        layers_to_transform (`list[int]` or `int`, *optional*):
            Indices of the layers to bypass. By default the one layer at `depth`.
        layers_pattern (`list[str]` or `str`, *optional*):
            Name of the stack of layers, needed only with `layers_to_transform` and `target_modules` on unusual models.
        depth (`float`, *optional*, defaults to `0.8`):
            Which layer to bypass by default, as a share of the number of layers. Edits take well between 0.7 and 0.87;
            earlier layers learn more slowly and so do the last three.
        modules_to_save (`list[str]`, *optional*):
            Other modules to train and save whole, as in every PEFT method.

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
        normalize (`bool`, *optional*, defaults to `True`):
            Let experts read inputs of unit root mean square and write in the unit of the FFN's own output, so that one
            learning rate serves models of any scale.
        lam (`float`, *optional*, defaults to `1.0`):
            Weight of the experts' output beside the FFN's.
        init_weights (`bool`, *optional*, defaults to `True`):
            Start new experts with an output of zero. `False` starts them at random, and an adapter without edits lets its
            open expert act on every prompt; this is of use only in tests, PEFT's own among them.

    > How a prompt finds its expert

    Args:
        routing (`str`, *optional*, defaults to `"nearest_anchor"`):
            `"nearest_anchor"`: every edit leaves its subject and its prompt as anchors, and nothing about routing is
            trained. `"kv_anchor"`: the paper's, one learned key an expert against a projection of the mean embedding.
        threshold (`float`, *optional*):
            Lowest score, the share of an anchor's tokens found in a row, at which a prompt is in scope. By default every
            anchor has its own, calibrated when the edit is made against prompts that no edit is about.
        relation_gate (`bool`, *optional*, defaults to `True`):
            Let a prompt that names an edit's subject, and no longer name that begins with it, reach the edit only if it
            also asks for what the edit is about (`"nearest_anchor"` only). `False` lets the edit answer whatever is asked
            about its subject.
        relation_threshold (`float`, *optional*):
            Lowest score, in standard deviations, at which a prompt asks for what an edit is about. By default it is
            calibrated once for a base model, for edits whose prompts are questions and for others. Lower lets more
            phrasings through, and more of what the edit is not about.
        deferral (`bool`, *optional*, defaults to `True`):
            Let the base model alone answer what is out of scope of every edit. `False`, with `"kv_anchor"` only, routes
            every prompt, as published.
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
        num_anchors, num_anchor_tokens, num_ledger_bytes, num_targets, num_target_tokens, num_token_kinds, num_reply_tokens,
        num_router_anchors, num_relation_features, num_relation_prompts, num_relation_marks, num_relation_stops,
        num_relation_continuing, num_relation_keys, num_relation_emphasis (`int`):
            Sizes of what is stored beside them.
        output_scale (`float`, *optional*):
            Mean absolute output of the bypassed FFN, measured before the first edit: the unit of `normalize`.
        base_model_fingerprint (`str`, *optional*):
            Digest of the base model's shape, to tell an adapter that is loaded onto another model.
    """

    target_modules: Optional[Union[list[str], str]] = None
    exclude_modules: Optional[Union[list[str], str]] = None
    layers_to_transform: Optional[Union[list[int], int]] = None
    layers_pattern: Optional[Union[list[str], str]] = None
    depth: float = 0.8
    modules_to_save: Optional[list[str]] = None

    expert: Literal["lora", "ffn"] = choice("lora", ("lora", "ffn"), "Form of an expert.")
    expert_dim: Optional[int] = 4
    expert_dtype: str = choice("bfloat16", ("bfloat16", "float16", "float32"), "Storage of committed experts.")
    edits_per_expert: int = 1
    normalize: bool = True
    lam: float = 1.0
    init_weights: bool = True

    routing: Literal["nearest_anchor", "kv_anchor"] = choice(
        "nearest_anchor", ("nearest_anchor", "kv_anchor"), "How a prompt finds its expert."
    )
    threshold: Optional[float] = None
    relation_gate: bool = True
    relation_threshold: Optional[float] = None
    deferral: bool = True
    top_k: int = 1
    anchor_dim: Optional[int] = None
    gate_value: str = choice("one", ("one", "softmax"), "Weight of the chosen experts.")
    projection: str = choice("shared_frozen", ("shared", "shared_frozen", "per_expert"), "Projection of the router.")
    train_route: str = choice("forced", ("forced", "free"), "Expert of an edit in training.")
    router_loss: float = 1.0
    router_replay: bool = True

    num_experts: int = 0
    num_open_experts: int = 1
    num_anchors: int = 0
    num_anchor_tokens: int = 0
    num_ledger_bytes: int = 0
    num_targets: int = 0
    num_target_tokens: int = 0
    num_token_kinds: int = 0
    num_reply_tokens: int = 0
    num_router_anchors: int = 0
    num_relation_features: int = 0
    num_relation_prompts: int = 0
    num_relation_marks: int = 0
    num_relation_stops: int = 0
    num_relation_continuing: int = 0
    num_relation_keys: int = 0
    num_relation_emphasis: int = 0
    output_scale: Optional[float] = None
    base_model_fingerprint: Optional[str] = None

    in_use: ClassVar[bool] = False  # an adapter has this very object, and writes its sizes there

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType("LEMOE")
        if self.task_type is None and self.target_modules is None:
            self.task_type = TaskType.CAUSAL_LM
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list):
            self.exclude_modules = set(self.exclude_modules)
        for name, spec in self.__dataclass_fields__.items():
            allowed = spec.metadata.get("choices")
            if allowed and getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {getattr(self, name)!r}.")
        for name in ("edits_per_expert", "top_k", "expert_dim", "anchor_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be a positive integer; got {value!r}.")
        if not 0 <= self.depth <= 1:
            raise ValueError(f"`depth` is a share of the model's layers, between 0 and 1; got {self.depth!r}.")
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"`threshold` is a share of tokens, above 0 and at most 1; got {self.threshold!r}.")
        if not self.deferral and self.routing != "kv_anchor":
            raise ValueError(
                "`deferral=False` needs `routing='kv_anchor'`: the nearest anchor of a prompt that shares nothing with "
                "any edit is not defined."
            )
        if self.top_k > 1 and self.routing != "kv_anchor":
            raise ValueError(f"`top_k={self.top_k}` needs `routing='kv_anchor'`; the nearest anchor has one expert.")

    @property
    def asks_relation(self) -> bool:
        """Whether edits act only where they are asked for."""
        return self.relation_gate and self.routing == "nearest_anchor"

    def save_pretrained(self, save_directory: str, **kwargs) -> None:
        # The one call of PEFT's `save_pretrained` that a method can extend, after the weights are written: here the card
        # learns of lemoe_hf and of the edits.
        super().save_pretrained(save_directory, **kwargs)
        weights = Path(save_directory, "adapter_model.safetensors")
        entries = read_ledger(weights) if weights.is_file() else []
        complete_card(Path(save_directory), self.base_model_name_or_path, entries, self.base_model_fingerprint)

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
