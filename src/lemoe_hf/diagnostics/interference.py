"""What rank-one edits would do to other facts, before they are made.

Axes: `n` edits, `f` protected facts, `m` and `d` inputs and outputs of the edited matrix.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..moments import keys_of
from ..rank_one import RankOneArguments, Update
from ..rank_one.select import Layers
from ..rank_one.update import weight_of
from .conflicts import Pair, bound_pairs
from .superposition import bare


class Written(NamedTuple):
    """Whitened keys of edits of shape `(n, m)`, norms of what their values change by, of shape `(n,)`, and the layers."""

    whitened: torch.Tensor
    delta: torch.Tensor
    layers: Layers


@dataclass(frozen=True)
class Interference:
    r"""
    Args:
        edits (`list` of [`Edit`]), protected (`list` of [`Edit`]): What would be edited, and what is to stay.
        p (`torch.Tensor` of shape `(n, f)`): Superposition coefficients.
        damage (`torch.Tensor` of shape `(n, f)`):
            $|p_{ij}| \cdot ||\delta_i|| / ||W k_j||$: by how much of its length edit i moves the matrix's output at fact j.
        bound (`list[tuple[int, int]]`): Edits and protected facts that cannot be told apart.
        pairs (`list` of [`Pair`]): Bound pairs among the edits themselves, with their conflicts.
    """

    edits: list[Edit]
    protected: list[Edit]
    p: torch.Tensor
    damage: torch.Tensor
    bound: list[tuple[int, int]]
    pairs: list[Pair]

    def worst(self, num: int = 10) -> list[dict[str, Any]]:
        """The largest damages, with the texts."""
        order = self.damage.flatten().argsort(descending=True)[:num]
        rows = [divmod(int(index), len(self.protected)) for index in order]
        return [
            {
                "damage": self.damage[i, j].item(),
                "p": self.p[i, j].item(),
                "edit": self.edits[i].prompt,
                "protected": self.protected[j].prompt,
            }
            for i, j in rows
        ]

    def __str__(self) -> str:
        lines = [
            f"{row['damage']:.3f} (p {row['p']:+.3f})  {row['edit']!r} -> {row['protected']!r}" for row in self.worst()
        ]
        lines += [
            f"bound: {self.edits[i].prompt!r} cannot be edited without {self.protected[j].prompt!r}"
            for i, j in self.bound
        ]
        return "\n".join([*lines, *map(str, self.pairs)])


def predict_interference(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    protected: Sequence[Edit | tuple[str, str]],
    layer: int,
    arguments: RankOneArguments | None = None,
    data: Iterable[Any] | None = None,
    updates: Sequence[Update] | None = None,
    bound: float = 0.8,
) -> Interference:
    """
    Tell which protected facts would be hurt by which edits.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            A dense causal language model, or one with adapters, whose base model is looked at.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        edits (`Sequence` of [`Edit`]): Each with its subject.
        protected (`Sequence` of [`Edit`] or of `(prompt, subject)`): Facts that are to stay.
        layer (`int`): Where the edits would be made.
        arguments ([`RankOneArguments`], *optional*): How they would be made.
        data (`Iterable`, *optional*): As of [`second_moments`].
        updates (`Sequence` of [`Update`], *optional*):
            The edits as they would be made, such as [`select_layer`] returns them. By default they are solved here, which
            is what takes time.
        bound (`float`, *optional*, defaults to 0.8): Smallest coefficient at which two facts cannot be told apart.

    Raises:
        ValueError: If there are no edits or nothing to protect, a subject is missing, or the layer is not there or has no
            dense FFN.
    """
    facts = [fact if isinstance(fact, Edit) else Edit(fact[0], "-", subject=fact[1]) for fact in protected]
    if not facts:
        raise ValueError("There is nothing to protect: the list is empty.")
    of_edits = written(model, tokenizer, edits, layer, arguments, data, updates)
    layers = of_edits.layers
    with bare(model) as root:
        keys = keys_of(root, tokenizer, facts, [layer])[layer]
        values = keys @ weight_of(root.get_submodule(layers.names([layer])[layer])).cpu().T
    whitened = layers.whitening(layer).whiten(keys)
    gram = of_edits.whitened @ of_edits.whitened.T
    p = of_edits.whitened @ whitened.T / gram.diagonal()[:, None]
    damage = p.abs() * of_edits.delta[:, None] / values.norm(dim=-1).double()
    return Interference(
        list(edits),
        facts,
        p.float(),
        damage.float(),
        [(i, j) for i, j in (p >= bound).nonzero().tolist()],
        bound_pairs(edits, (gram / gram.diagonal()[:, None]).float(), bound),
    )


def written(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit],
    layer: int,
    arguments: RankOneArguments | None,
    data: Iterable[Any] | None,
    updates: Sequence[Update] | None,
) -> Written:
    """What edits of one layer would write, each on the base model."""
    with bare(model) as root:
        layers = Layers(root, tokenizer, arguments or RankOneArguments(), data, [layer])
        keys = keys_of(root, tokenizer, edits, [layer])[layer]
        layers.prepare([layer])
        if updates is None:
            updates = [layers.updates(edit, [layer])[0] for edit in edits]
    if len(updates) != len(edits) or any(update.layer != layer for update in updates):
        found = [update.layer for update in updates]
        raise ValueError(
            f"`updates` must be one for each edit, at layer {layer}; got {len(updates)}, at layers {found}."
        )
    delta = torch.tensor([update.delta for update in updates], dtype=torch.double)
    return Written(layers.whitening(layer).whiten(keys), delta, layers)
