"""What a MEMoE adapter is: how many experts, what an expert is, how tokens are spread over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Optional

from ..config import EditingConfig, choice


@dataclass
class MEMoEConfig(EditingConfig):
    """
    Configuration of a [`MEMoEModel`]: a fixed number of experts beside the feed-forward network (FFN) of a layer, which all
    edits share, and a gate that chooses among them for every token.

    The defaults are the best setting known to the authors, not the published one; [`MEMoEConfig.paper`] is the latter. Where
    an adapter sits, and which texts it leaves alone, is told by what all methods share, [`EditingConfig`]. With
    `deferral=False` it acts on every token of every text.

    > What an expert is

    Args:
        num_experts (`int`, *optional*, defaults to `4`):
            Experts, which are trained together.
        expert (`str`, *optional*, defaults to `"ffn"`):
            `"ffn"`, a gated FFN as in the paper, or `"lora"`, a linear map of low rank. Both start with an output of zero.
        expert_dim (`int`, *optional*, defaults to `256`):
            Inner width of an FFN expert or rank of a LoRA expert. `None` takes the width of the base model's own FFN.

    > How a token finds its experts

    Args:
        top_k (`int`, *optional*, defaults to `1`):
            Experts that act on a token, those with the highest gates. Gates are a softmax over all experts, and are not
            renormalised.
        use_anchor (`bool`, *optional*, defaults to `True`):
            Let the gate read, beside the hidden state of a token, what its text is about: the mean embedding of the edited
            subject, else of capitalised words, else of the prompt. `False` is a conventional gate, for comparison.
        router_noise (`float`, *optional*, defaults to `0.0`):
            Standard deviation of the noise that is added to the gate's scores in training. `None` for 1 over `num_experts`.
        balance_loss (`float`, *optional*, defaults to `0.0`):
            Weight of a loss that spreads tokens evenly over the experts (Switch Transformers, equation 4). In a training loop
            it is part of the model's own `loss`.
        replay (`int`, *optional*, defaults to `0`):
            How many earlier edits, drawn at random, are trained again beside those of a call of `edit`. Nothing is frozen:
            without replay, new edits wear off what earlier ones have taught.
    """

    num_experts: int = 4
    expert: Literal["ffn", "lora"] = choice("ffn", ("ffn", "lora"), "Form of an expert.")
    expert_dim: Optional[int] = 256

    top_k: int = 1
    use_anchor: bool = True
    router_noise: Optional[float] = 0.0
    balance_loss: float = 0.0
    replay: int = 0

    method: ClassVar[str] = "MEMOE"
    positive: ClassVar[tuple[str, ...]] = ("num_experts", "top_k", "expert_dim")

    def __post_init__(self):
        super().__post_init__()
        if self.top_k > self.num_experts:
            raise ValueError(
                f"`top_k={self.top_k}` experts cannot act on a token where `num_experts={self.num_experts}`. Take fewer, or "
                f"have more experts."
            )
        for name in ("router_noise", "balance_loss", "replay"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"`{name}` must not be negative; got {value!r}.")

    @property
    def noise(self) -> float:
        """Standard deviation of the gate's noise."""
        return 1 / self.num_experts if self.router_noise is None else self.router_noise

    @classmethod
    def paper(cls, **overrides) -> MEMoEConfig:
        """The setting published as MEMoE (arXiv 2405.19086), as far as it is known, and nothing of ours.

        What could not be found in the paper is as in LEMoE, which builds on it, or else ours: layer 18 of 32, four experts as
        wide as the base FFN, the best one of them for a token, noise of 1 over their number. It acts on every token of every
        text.
        """
        published = {
            "depth": 18 / 32,
            "num_experts": 4,
            "expert": "ffn",
            "expert_dim": None,
            "top_k": 1,
            "router_noise": None,
            "normalize": False,
            "deferral": False,
            "replay": 0,
        }
        return cls(**{**published, **overrides})
