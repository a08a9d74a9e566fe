"""What an ELDER adapter is: how many LoRAs in how many layers, how they are chosen, and which texts they leave alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional, Union

from ..config import EditingConfig, choice


@dataclass
class ELDERConfig(EditingConfig):
    """
    Configuration of an [`ELDERModel`]: a mixture of LoRAs of fixed size beside one linear layer of the feed-forward network
    (FFN) in several consecutive layers, whose routers are guided to give edits of one target one allocation (ELDER, AAAI 2025,
    hf.co/papers/2408.11869).

    The defaults are a repaired setting; [`ELDERConfig.paper`] is the published one. What all methods share is told by
    [`EditingConfig`].

    > The mixture

    Args:
        num_experts (`int`, *optional*, defaults to `4`): LoRAs in each layer.
        r (`int`, *optional*, defaults to `8`): Rank of a LoRA.
        num_layers (`int`, *optional*, defaults to `6`):
            Consecutive layers with a mixture, from the one at `depth` on. `layers_to_transform` names them instead.
        depth (`float`, *optional*, defaults to `21 / 32`): The first of these layers, as a share of the number of layers.
        top_k (`int`, *optional*, defaults to `2`): LoRAs that act in each layer.
        lora_init (`str`, *optional*, defaults to `"kaiming"`):
            First values of the input matrices: uniform up to one over the root of the input size, as in PEFT's LoRA, or
            `"released"`, up to one over the root of the rank, which the released code has.

    > The choice

    Args:
        query_source (`str`, *optional*, defaults to `"layer_input"`):
            What the routers read at the prompt's last token: `"layer_input"`, the hidden state before the first layer with a
            mixture (the paper), or `"linear_input"`, the input of the linear layer one layer earlier (the released
            code).
        query_norm (`str`, *optional*, defaults to `"layernorm"`):
            `"layernorm"` gives queries zero mean and unit variance; `"none"` leaves them as they are, as published.
        acts_from (`str`, *optional*, defaults to `"prompt_end"`):
            The first token acted on: the prompt's last, so that keys and values of what is given are the base model's, or
            `"start"`, every token of the sequence, as published.
        allocation (`str`, *optional*, defaults to `"soft"`):
            Which LoRAs an edit in training passes: the routers' choice (`"soft"`), or those allocated to it (`"hard"`).
        guide_lambda (`float`, *optional*, defaults to `1e-2`):
            Weight of the guided loss, minus the sum of the log probabilities of the allocated LoRAs.
        codes_unique (`bool`, *optional*, defaults to `True`):
            Draw the allocations of different targets without replacement.
        refresh_codes (`bool`, *optional*, defaults to `True`):
            Compute the codes of all edits anew after each batch, from their stored queries: routers keep moving.

    > Which texts it leaves to the base model

    Args:
        deferral_by (`str`, *optional*, defaults to `"names"`):
            `"names"`: names and what is asked decide, as in [`LEMoEConfig`], and the edit that is found chooses the LoRAs by
            its stored query; an edit can be undone. `"hamming"`: the distance of a text's code to those of the edits, as
            published; edits cannot be undone.
        deferral_threshold (`int` or `str`, *optional*, defaults to `"calibrate"`):
            Hamming distance below which a text is acted on (`"hamming"` only). Distances are even. `"calibrate"` takes the
            largest that keeps the share of unrelated prompts acted on within `false_accept_rate`, and warns where none does.
        false_accept_rate (`float`, *optional*, defaults to `0.05`): Of `"calibrate"`.

    > State, written by the model and read when an adapter is loaded

    Args:
        num_codes (`int`): Edits whose code is stored.
        hamming_threshold (`int`, *optional*): What `"calibrate"` has found. Until then a text must have an edit's own code.
    """

    depth: float = 21 / 32
    num_experts: int = 4
    r: int = 8
    num_layers: int = 6
    top_k: int = 2
    lora_init: str = choice("kaiming", ("kaiming", "released"), "First values of the input matrices.")

    query_source: str = choice("layer_input", ("layer_input", "linear_input"), "What the routers read.")
    query_norm: str = choice("layernorm", ("layernorm", "none"), "Scale of the queries.")
    acts_from: str = choice("prompt_end", ("prompt_end", "start"), "The first token acted on.")
    allocation: str = choice("soft", ("soft", "hard"), "LoRAs of an edit in training.")
    guide_lambda: float = 1e-2
    codes_unique: bool = True
    refresh_codes: bool = True

    deferral_by: str = choice("names", ("names", "hamming"), "What decides whether a text is acted on.")
    deferral_threshold: Union[int, str] = "calibrate"
    false_accept_rate: float = 0.05

    num_codes: int = 0
    hamming_threshold: Optional[int] = None

    method: ClassVar[str] = "ELDER"
    positive: ClassVar[tuple[str, ...]] = ("num_experts", "r", "num_layers", "top_k")

    def __post_init__(self):
        super().__post_init__()
        if self.top_k > self.num_experts:
            raise ValueError(
                f"`top_k={self.top_k}` of `num_experts={self.num_experts}` LoRAs cannot act; lower `top_k`."
            )
        is_number = isinstance(self.deferral_threshold, int) and self.deferral_threshold >= 0
        if self.deferral_threshold != "calibrate" and not is_number:
            raise ValueError(
                f"`deferral_threshold` is a Hamming distance, an integer from 0 on, or 'calibrate'; got "
                f"{self.deferral_threshold!r}."
            )
        if not 0 <= self.false_accept_rate <= 1:
            raise ValueError(f"`false_accept_rate` is a share, from 0 to 1; got {self.false_accept_rate!r}.")
        if not self.deferral and self.deferral_by == "names":
            raise ValueError("`deferral=False` needs `deferral_by='hamming'`: a text that names no edit has no query.")

    @property
    def asks_relation(self) -> bool:
        return super().asks_relation and self.deferral_by == "names"

    @property
    def threshold_in_use(self) -> int:
        """Hamming distance below which a text is acted on."""
        if self.deferral_threshold == "calibrate":
            return 2 if self.hamming_threshold is None else self.hamming_threshold
        return int(self.deferral_threshold)

    @classmethod
    def paper(cls, **overrides) -> ELDERConfig:
        """The setting published as ELDER (AAAI 2025, Algorithm 1 and appendix, Table 5), and nothing of ours."""
        published = {
            "normalize": False,
            "query_norm": "none",
            "acts_from": "start",
            "codes_unique": False,
            "refresh_codes": False,
            "deferral_by": "hamming",
            "deferral_threshold": 12,
        }
        return cls(**{**published, **overrides})
