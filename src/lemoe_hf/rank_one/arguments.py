"""How rank-one edits are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..moments import RIDGE
from ..moments.collect import NUM_TOKENS


@dataclass
class RankOneArguments:
    """
    > Where an edit is written

    Args:
        layer (`int` or `"auto"`, *optional*, defaults to `"auto"`):
            The layer whose FFN is edited: always the same one, as in ROME, or for each edit the one in which it is the
            smallest change of the weights, as in WilKE (see [`select_layer`]).
        scanning_ceiling (`float`, *optional*, defaults to 0.5):
            With `"auto"`: layers from 0 up to this share of all are candidates. Published: 24 of 48 for GPT2-XL, 7 of 28 for
            GPT-J.
        gate (`bool`, *optional*, defaults to `True`):
            Make only edits that succeed, that is, after which the target is the greedy answer to the prompt, and choose among
            layers in which they do: one in which they fail has a small change for want of one. An edit that fails in all of
            them is refused. The papers have no such gate.

    > What is written

    Args:
        key (`str`, *optional*, defaults to `"unified"`):
            `"unified"`: the mean key over contexts stands for the fact throughout (r-ROME). `"rome"`: that mean in one factor,
            and the key of the bare prompt in the other; if the two differ, as they do for subjects that are the first token of
            a prompt, the update explodes.
        max_steps (`int`, *optional*, defaults to 20), learning_rate (`float`, *optional*, defaults to 0.5):
            Of Adam, on the value. The last step is not taken, only looked at.
        kl_factor (`float`, *optional*, defaults to 0.0625): Weight of the divergence behind `"{subject} is a"`.
        norm_penalty (`float`, *optional*, defaults to 0.5): Weight of the change's norm over that of the value, squared.
        clamp (`float`, *optional*, defaults to 4.0): Largest norm of the change, in norms of the value.
        stop_loss (`float`, *optional*, defaults to 0.05): Loss at which an edit is done.
        contexts (`tuple` of `(int, int)`, *optional*):
            Lengths in tokens, and numbers, of texts of the model's own that the prompt is put behind, beside the bare prompt.
        seed (`int`, *optional*, defaults to 0): Of these texts, and of the samples that statistics are taken of.

    > Statistics of the layer's inputs

    Args:
        ridge (`float`, *optional*, defaults to 1e-3): As of [`Whitening`].
        num_tokens (`int`, *optional*, defaults to 8192): As of [`second_moments`].
    """

    layer: int | Literal["auto"] = "auto"
    scanning_ceiling: float = 0.5
    gate: bool = True
    key: Literal["unified", "rome"] = "unified"
    max_steps: int = 20
    learning_rate: float = 0.5
    kl_factor: float = 0.0625
    norm_penalty: float = 0.5
    clamp: float = 4.0
    stop_loss: float = 0.05
    contexts: tuple[tuple[int, int], ...] = ((5, 2), (10, 2))
    seed: int = 0
    ridge: float = RIDGE
    num_tokens: int = NUM_TOKENS

    def __post_init__(self) -> None:
        if self.key not in ("unified", "rome"):
            raise ValueError(f"`key` must be one of unified, rome; got {self.key!r}.")
        if self.layer != "auto" and (not isinstance(self.layer, int) or self.layer < 0):
            raise ValueError(f"`layer` must be 'auto' or the index of a layer, 0 or more; got {self.layer!r}.")
        if not 0 < self.scanning_ceiling <= 1:
            raise ValueError(
                f"`scanning_ceiling` is a share of the layers, above 0 and at most 1; got {self.scanning_ceiling!r}."
            )
        for name in ("max_steps", "learning_rate", "clamp", "num_tokens"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive; got {getattr(self, name)!r}.")
        self.contexts = tuple((length, number) for length, number in self.contexts)  # JSON has lists

    @classmethod
    def paper(
        cls, method: Literal["wilke", "rome"] = "wilke", layer: int | None = None, **overrides: Any
    ) -> RankOneArguments:
        """
        The published settings, and nothing of ours: WilKE's (2402.10987), or ROME's at a fixed layer (17 of 48 for GPT2-XL, 5
        of 28 for GPT-J), with which WilKE is compared.

        The second moment is that of 100,000 texts of Wikipedia, without a ridge: pass them to the editor as `data`.

        Raises:
            ValueError: If the method is unknown, or ROME has no layer, or WilKE has one.
        """
        if method not in ("wilke", "rome"):
            raise ValueError(f"`method` must be one of wilke, rome; got {method!r}.")
        if (method == "rome") != (layer is not None):
            raise ValueError(
                "ROME edits one layer: pass `layer`."
                if layer is None
                else "WilKE chooses its layers: leave `layer` out."
            )
        published = {
            "layer": "auto" if layer is None else layer,
            "scanning_ceiling": 0.5,
            "gate": False,
            "key": "rome",
            "contexts": ((5, 10), (10, 10)),
            "ridge": 0.0,
            "num_tokens": 100_000 * 128,
        }
        return cls(**{**published, **overrides})
