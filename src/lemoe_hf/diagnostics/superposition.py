r"""
How much facts share of what is written to when one of them is edited ("Knowledge in Superposition", AAAI 2025).

Axes: `n` facts, `m` width of a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..moments import RIDGE, Whitening, keys_of, second_moments
from ..moments.collect import NUM_TOKENS
from ..structure import check_causal, find_stack
from .conflicts import Pair, bound_pairs


@dataclass(frozen=True)
class Superposition:
    r"""
    Args:
        p (`torch.Tensor` of shape `(n, n)`):
            Superposition coefficients $p_{ij} = k_i^T C^{-1} k_j / k_i^T C^{-1} k_i$ (section 3): the share of the change at
            fact i that an edit of it makes at fact j too. Its diagonal is 1; it is not symmetric, and can be larger than 1.
        q (`torch.Tensor` of shape `(n, n)`): Dot products $k_i \cdot k_j$.
        whitening (`torch.Tensor` of shape `(n, n)`): Cosines in whitening space.
        activation (`torch.Tensor` of shape `(n, n)`): Cosines of the keys themselves.
    """

    p: torch.Tensor
    q: torch.Tensor
    whitening: torch.Tensor
    activation: torch.Tensor

    @classmethod
    def of(cls, keys: torch.Tensor, whitening: Whitening) -> Superposition:
        """Of keys of shape `(n, m)`."""
        whitened = whitening.whiten(keys)
        gram = whitened @ whitened.T
        own = gram.diagonal()
        unit = F.normalize(keys.double(), dim=-1)
        return cls(
            p=(gram / own[:, None]).float(),
            q=(keys.double() @ keys.double().T).float(),
            whitening=(gram / own.outer(own).sqrt()).float(),
            activation=(unit @ unit.T).float(),
        )

    def figures(self) -> dict[str, float]:
        """Of the pairs of different facts: see [`layer_profile`]. `nan` of what a single pair does not tell."""
        p, whitening, activation = map(off_diagonal, (self.p, self.whitening, self.activation))
        return {
            "kurtosis": kurtosis(p),
            "mean": p.mean().item(),
            "mean_abs": p.abs().mean().item(),
            "share_above_0.1": (p.abs() > 0.1).float().mean().item(),
            "whitening_mean": whitening.mean().item(),
            "whitening_std": whitening.std(correction=0).item(),
            "activation_mean": activation.mean().item(),
        }


def off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """The entries of a matrix of shape `(n, n)` without its diagonal."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


def kurtosis(values: torch.Tensor) -> float:
    """Fisher's excess kurtosis, biased (SciPy's default): 0 for a normal distribution.

    >>> kurtosis(torch.tensor([-1.0, 1.0]))
    -2.0
    """
    centred = values.double() - values.double().mean()
    return (centred.pow(4).mean() / centred.square().mean().square() - 3).item()


@dataclass(frozen=True)
class SuperpositionReport:
    """
    Args:
        layer (`int`): The layer that was looked at.
        edits (`list` of [`Edit`]): The facts.
        matrices ([`Superposition`]): Of each pair of them.
        pairs (`list` of [`Pair`]): Those that cannot be edited one without the other, the closest first.
    """

    layer: int
    edits: list[Edit]
    matrices: Superposition
    pairs: list[Pair]

    @property
    def conflicts(self) -> list[Pair]:
        """Bound pairs whose targets differ."""
        return [pair for pair in self.pairs if pair.is_conflict]

    def top_pairs(self, num: int = 10) -> list[dict[str, Any]]:
        """The pairs of different facts with the largest coefficients, each once, with both directions."""
        p = self.matrices.p
        largest = torch.maximum(p.abs(), p.T.abs()).triu(1)
        order = largest.flatten().argsort(descending=True)[: min(num, len(p) * (len(p) - 1) // 2)]
        rows = [divmod(int(index), len(p)) for index in order]
        return [
            {
                "p": p[i, j].item(),
                "reversed": p[j, i].item(),
                "first": self.edits[i].prompt,
                "second": self.edits[j].prompt,
            }
            for i, j in rows
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "num_facts": len(self.edits),
            **self.matrices.figures(),
            "top_pairs": self.top_pairs(),
            "bound_pairs": [vars(pair) for pair in self.pairs],
        }

    def __str__(self) -> str:
        figures = ", ".join(f"{name} {value:.3f}" for name, value in self.matrices.figures().items())
        lines = [f"{len(self.edits)} facts at layer {self.layer}: {figures}"]
        lines += [
            f"  {row['p']:+.3f} / {row['reversed']:+.3f}  {row['first']!r} ~ {row['second']!r}"
            for row in self.top_pairs()
        ]
        lines += [str(pair) for pair in self.pairs]
        return "\n".join(lines)

    def plot(self, path: str | Path, profile: Sequence[dict[str, float]] = ()) -> None:
        """Draw it, with a layer profile if there is one; needs `pip install lemoe_hf[plot]`."""
        from .plots import draw

        draw(self, path, profile)


@contextmanager
def bare(model: PeftModel | PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The base model of a [`~peft.PeftModel`], its adapters switched off; any other as it is."""
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            base: Any = model.get_base_model()
            yield base
    else:
        yield model


def superposition_report(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    layer: int | None = None,
    data: Iterable[Any] | None = None,
    num_tokens: int = NUM_TOKENS,
    ridge: float = RIDGE,
    bound: float = 0.8,
) -> SuperpositionReport:
    """
    Tell which facts are bound together in a layer, before any of them is edited.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A dense causal language model, or one with adapters, whose base model is looked at.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        edits (`Sequence` of [`Edit`]): At least two, each with its subject; 128 are enough for the kurtosis to settle.
        layer (`int`, *optional*):
            By default that at a quarter of the depth. In layer 0, what facts share is the last token of their subjects.
        data (`Iterable`, *optional*), num_tokens (`int`, *optional*): As of [`second_moments`].
        ridge (`float`, *optional*, defaults to 1e-3): As of [`Whitening`]; 0 is the paper's.
        bound (`float`, *optional*, defaults to 0.8): Smallest coefficient of a bound pair.

    Raises:
        ValueError: If there are fewer than two facts, one does not tell its subject, the layer is not there or has no dense
            FFN, or `ridge=0` and the statistics are not of full rank.
    """
    with bare(model) as root:
        if layer is None:
            layer = len(find_stack(root)[1]) // 4
        (matrices,) = _matrices(root, tokenizer, edits, [layer], data, num_tokens, ridge)
    return SuperpositionReport(layer, list(edits), matrices, bound_pairs(edits, matrices.p, bound))


def layer_profile(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    layers: Sequence[int] | None = None,
    data: Iterable[Any] | None = None,
    num_tokens: int = NUM_TOKENS,
    ridge: float = RIDGE,
) -> list[dict[str, float]]:
    """
    Superposition of a set of facts in each layer.

    Arguments and errors are those of [`superposition_report`]; by default all layers.

    Returns:
        For each layer, over the pairs of different facts: excess `kurtosis` of $p$ (high: most pairs are independent and a few
        are bound), its `mean`, `mean_abs` and `share_above_0.1` in magnitude; mean and standard deviation of the cosines in
        whitening space, and the mean of those of the keys themselves.
    """
    with bare(model) as root:
        wanted = list(range(len(find_stack(root)[1]))) if layers is None else list(layers)
        found = _matrices(root, tokenizer, edits, wanted, data, num_tokens, ridge)
    return [{"layer": layer, **matrices.figures()} for layer, matrices in zip(wanted, found, strict=True)]


def _matrices(
    root: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    layers: list[int],
    data: Iterable[Any] | None,
    num_tokens: int,
    ridge: float,
) -> list[Superposition]:
    check_causal(root)
    if len(edits) < 2:
        raise ValueError(f"Superposition is a matter of two facts or more; got {len(edits)}.")
    keys = keys_of(root, tokenizer, edits, layers)
    moments = second_moments(root, tokenizer, layers, data, num_tokens)
    return [Superposition.of(keys[layer], Whitening(moments[layer], ridge)) for layer in layers]
