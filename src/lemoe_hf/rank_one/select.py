"""In which layer an edit is the smallest change of the weights (WilKE, 2402.10987, section 4)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..editing.training import EditingError
from ..moments import Whitening, check_subject, second_moments
from ..structure import check_causal, check_layers, find_ffn_outputs, find_stack, streams_of
from .arguments import RankOneArguments
from .contexts import own_contexts, texts_for
from .update import Update, solve


class Layers:
    """
    A model's candidate layers with what is computed once for all edits: contexts, statistics, and the names of matrices.

    Args:
        root ([`~transformers.PreTrainedModel`]): The model, before it is edited.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        arguments ([`RankOneArguments`]): How edits are made.
        data (`Iterable`, *optional*): Texts to take statistics of, as of [`second_moments`].
        layers (`Sequence[int]`, *optional*): The candidates, instead of those that the arguments name.

    Raises:
        ValueError: If the model is no causal language model, or a candidate layer is not there or has no dense FFN.
    """

    def __init__(
        self,
        root: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: RankOneArguments,
        data: Iterable[Any] | None = None,
        layers: Sequence[int] | None = None,
    ):
        check_causal(root)
        if streams_of(root) > 1:
            raise ValueError(
                f"{type(root).__name__} runs what it predicts beside what it reads. Edit this model with LEMoE."
            )
        if data is None and arguments.num_tokens > 1_000_000:
            raise ValueError(
                f"Statistics of {arguments.num_tokens:,} tokens need texts: pass them as `data`, such as Wikipedia's, or "
                f"lower `num_tokens` to have the model make up its own."
            )
        self.root, self.tokenizer, self.arguments = root, tokenizer, arguments
        # A generator can be read once, and statistics of further layers may be asked for later.
        self.data = list(islice(data, arguments.num_tokens)) if isinstance(data, Iterator) else data
        self.num = len(find_stack(root)[1])
        self._whitenings: dict[int, Whitening] = {}
        self._contexts: list[str] | None = None
        self._names: dict[int, str] = {}
        if layers is None:
            below = range(max(1, math.floor(arguments.scanning_ceiling * self.num)))
            layers = below if arguments.layer == "auto" else [arguments.layer]
        self.candidates = list(layers)
        self.names(self.candidates)

    def names(self, layers: Sequence[int]) -> dict[int, str]:
        """The matrices of layers. Read from the bare model: adapters put others beside them."""
        missing = [layer for layer in layers if layer not in self._names]
        if missing:
            check_layers(self.root, missing, "layer")
            self._names |= find_ffn_outputs(self.root, missing)
        return {layer: self._names[layer] for layer in layers}

    def prepare(self, layers: Sequence[int]) -> None:
        """Take statistics of layers and draw contexts, on the bare model; what is there already is not done again."""
        missing = [layer for layer in layers if layer not in self._whitenings]
        a = self.arguments
        if missing:
            self.names(missing)
            found = second_moments(self.root, self.tokenizer, missing, self.data, a.num_tokens, seed=a.seed)
            self._whitenings |= {layer: Whitening(found[layer], a.ridge) for layer in missing}
        if self._contexts is None:
            self._contexts = own_contexts(self.root, self.tokenizer, a.contexts, a.seed)

    def is_prepared(self, layers: Sequence[int]) -> bool:
        return self._contexts is not None and all(layer in self._whitenings for layer in layers)

    def whitening(self, layer: int) -> Whitening:
        """The space of a layer's keys, once it is prepared."""
        return self._whitenings[layer]

    def updates(self, edit: Edit, layers: Sequence[int]) -> list[Update]:
        """The edit as it would be made at each layer; nothing of the model is changed."""
        texts = texts_for(self.tokenizer, edit, self._contexts or [])
        names = self.names(layers)
        return [
            solve(self.root, layer, names[layer], texts, self._whitenings[layer], self.arguments) for layer in layers
        ]

    def choose(self, edit: Edit, updates: Sequence[Update]) -> Update:
        """
        The smallest of an edit's changes, of those that succeed if there is a gate.

        Raises:
            EditingError: If it succeeds in none.
        """
        successful = [update for update in updates if update.success or not self.arguments.gate]
        if not successful:
            best = min(updates, key=lambda update: update.nll)
            raise EditingError(
                f"{edit.prompt!r} -> {edit.target_new!r} succeeds in none of the layers {[u.layer for u in updates]}; nearest "
                f"comes layer {best.layer}, with {best.nll:.2f} nats a token. Try others (`layer`, `scanning_ceiling`), more "
                f"`max_steps`, a prompt that does not begin with its subject, or LEMoE.",
                [],
            )
        return min(successful, key=lambda update: update.change)


@dataclass(frozen=True)
class LayerSelection:
    """
    Args:
        layer (`int`): The layer for all the edits: with the most successes, and of equals the smallest median change.
        layers (`list[int]`): The layer of each edit by itself, as WilKE has it.
        rows (`list[dict]`): For each layer: its index, the share of edits that succeed there, the median of their changes
            $||W' - W|| / ||W||$, of the norms of their values' changes, and of their cross-entropy.
        updates (`list[list[Update]]`): The edits as they would be made, for each edit one a layer.
    """

    layer: int
    layers: list[int]
    rows: list[dict[str, float]]
    updates: list[list[Update]]

    def __str__(self) -> str:
        lines = ["layer  success  change   delta    nll"]
        for row in self.rows:
            mark = " <-" if row["layer"] == self.layer else ""
            lines.append(
                f"{row['layer']:5d}  {row['success']:7.2f}  {row['change']:.4f}  {row['delta']:6.2f}  {row['nll']:5.2f}{mark}"
            )
        return "\n".join(lines)


def select_layer(
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Sequence[Edit] | Edit,
    layers: Sequence[int] | None = None,
    arguments: RankOneArguments | None = None,
    data: Iterable[Any] | None = None,
) -> LayerSelection:
    r"""
    Solve rank-one edits in every candidate layer, and tell where they change the weights least.

    The score is exact and needs no weight to be written (section 4.1 of the paper writes and restores it):

    $$\frac{||W' - W||}{||W||} = \frac{||\delta|| \, ||u||}{|k \cdot u| \, ||W||}, \quad u = C^{-1} \bar k$$

    The model is left as it was, bit for bit, and so are its adapters, which are switched off meanwhile.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model, or a [`~peft.PeftModel`] of one.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        edits ([`Edit`] or `Sequence` of [`Edit`]): Each with its subject.
        layers (`Sequence[int]`, *optional*): Candidates, by default those below `arguments.scanning_ceiling`.
        arguments ([`RankOneArguments`], *optional*): How edits are made.
        data (`Iterable`, *optional*): Texts to take statistics of, as of [`second_moments`].

    Raises:
        ValueError: If an edit does not tell its subject, or a layer is not there or has no dense FFN.
        EditingError: If an edit succeeds in no layer, unless `arguments.gate` is off.

    Example:

        >>> chosen = select_layer(model, tokenizer, edits)
        >>> print(chosen)
        >>> get_peft_model(model, LEMoEConfig(layers_to_transform=chosen.layer))
    """
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            base: Any = model.get_base_model()
            return select_layer(base, tokenizer, edits, layers, arguments, data)
    edits = [edits] if isinstance(edits, Edit) else list(edits)
    if not edits:
        raise ValueError("There are no edits to choose a layer for: the list is empty.")
    for edit in edits:
        check_subject(edit)
    arguments = arguments or RankOneArguments()
    of_model = Layers(model, tokenizer, arguments, data, layers)
    candidates = of_model.candidates
    of_model.prepare(candidates)
    updates = [of_model.updates(edit, candidates) for edit in edits]
    chosen = [of_model.choose(edit, row).layer for edit, row in zip(edits, updates, strict=True)]
    rows = [
        {
            "layer": layer,
            "success": sum(update.success for update in column) / len(column),
            **{name: median(getattr(update, name) for update in column) for name in ("change", "delta", "nll")},
        }
        for layer, column in zip(candidates, zip(*updates, strict=True), strict=True)
    ]
    best = min(rows, key=lambda row: (-row["success"] if arguments.gate else 0, row["change"]))
    return LayerSelection(int(best["layer"]), chosen, rows, updates)
