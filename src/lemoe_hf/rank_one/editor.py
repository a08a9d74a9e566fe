"""Edit the weights of a dense model by the closed form, and keep the edits as a LoRA adapter."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..generation import answers
from ..moments import check_subject
from .arguments import RankOneArguments
from .lora import attach
from .saved import load_edits, save_edits
from .select import Layers
from .update import Update, weight_of


class RankOneEditor:
    r"""
    Makes edits one after the other, each a rank-one change of the second matrix of one FFN: ROME at a fixed layer, WilKE at
    the layer where the edit is the smallest change (2402.10987).

    Unlike the edits of LEMoE, these act on every text: each moves every output a little, and an edit moves earlier ones as
    far as their keys overlap ("Knowledge in Superposition"; [`~lemoe_hf.diagnostics.predict_interference`] tells it
    beforehand). They are for one or some dozen edits; published figures fall apart between 64 and 1,000. What one gets for it
    is an ordinary LoRA adapter: it loads wherever LoRA does, and merges.

    The base weights are never written. `editor.model` is the model before the first edit, and then a [`~peft.PeftModel`]
    around it, with a LoRA adapter whose rank in a matrix is the number of edits there.

    Args:
        model ([`~transformers.PreTrainedModel`]): A dense causal language model, without adapters.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer.
        arguments ([`RankOneArguments`], *optional*): How edits are made.
        data (`Iterable`, *optional*):
            Texts, or records with a `text`, such as a `datasets.Dataset`, to take statistics of; see
            [`~lemoe_hf.diagnostics.second_moments`]. By default the model's own samples.
        adapter_name (`str`, *optional*, defaults to `"default"`): Of the LoRA adapter.

    Raises:
        TypeError: If the model has adapters.
        ValueError: If it is no causal language model, or a layer is not there, or is a mixture of experts.

    Example:

        >>> editor = RankOneEditor(model, tokenizer)
        >>> editor.edit([Edit("The mother tongue of Danielle Darrieux is", "English", subject="Danielle Darrieux")])
        >>> editor.save_pretrained("my-lora")  # PeftModel.from_pretrained(base, "my-lora") needs nothing of this package
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: RankOneArguments | None = None,
        data: Iterable[Any] | None = None,
        adapter_name: str = "default",
    ):
        if isinstance(model, PeftModel) or getattr(model, "_hf_peft_config_loaded", False):
            raise TypeError(
                f"RankOneEditor makes an adapter of its own and needs the bare model; got a {type(model).__name__} with one. "
                f"Merge it first (`model.merge_and_unload()`), or go on with earlier edits by `RankOneEditor.from_pretrained`."
            )
        self.root, self.tokenizer = model, tokenizer
        self.arguments = arguments or RankOneArguments()
        self.adapter_name = adapter_name
        self.layers = Layers(model, tokenizer, self.arguments, data)
        self._peft: PeftModel | None = None
        self._made: list[tuple[int, Edit, Update]] = []
        self._next = 0

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        """The edited model."""
        return self.root if self._peft is None else self._peft

    def edit(self, edits: Sequence[Edit] | Edit, layer: int | None = None) -> list[Update]:
        r"""
        Make edits, one after the other: each sees the weights that the earlier ones have left, and the statistics $C$ stay
        those of the base model.

        Args:
            edits ([`Edit`] or `Sequence` of [`Edit`]): Each with its subject.
            layer (`int`, *optional*): Where, instead of where the arguments say.

        Returns:
            What was written for each, with its layer and whether it succeeded.

        Raises:
            ValueError: If there are no edits, one does not tell its subject, or the layer is not there.
            EditingError: If an edit succeeds in no candidate layer, unless `arguments.gate` is off. Those before it stay.
        """
        edits = [edits] if isinstance(edits, Edit) else list(edits)
        if not edits:
            raise ValueError("There are no edits to make: the list is empty.")
        for edit in edits:
            check_subject(edit)
        candidates = self.layers.candidates if layer is None else [layer]
        self._prepare(candidates)
        made = []
        for edit in edits:
            found = self.layers.updates(edit, candidates)
            update = self.layers.choose(edit, found)
            self._set([*self._made, (self._next, edit, update)])
            self._next += 1
            made.append(update)
        return made

    def undo(self, edit_id: int | None = None) -> list[int]:
        """
        Take an edit back, by default the last one.

        The last edit goes without a trace: the adapter is the one before it, bit for bit. An earlier one takes with it what
        later edits were built on. Those in the same matrix are solved anew, in closed form, so that each still writes its
        value to its key: exactly what they would be, had the edit never been made, if the values they aim at are kept. These
        values, and the keys of edits in layers above, were found while the edit was there, and are not sought again.

        Returns:
            Identifiers of the later edits that were solved anew.

        Raises:
            ValueError: If there is no such edit.
        """
        ids = [made for made, _, _ in self._made]
        edit_id = (ids[-1] if ids else None) if edit_id is None else edit_id
        if edit_id not in ids:
            raise ValueError(f"There is no edit {edit_id}; there are {ids or 'none'}. `editor.edits()` lists them.")
        place = ids.index(edit_id)
        _, _, undone = self._made[place]
        kept, later, anew = self._made[:place], self._made[place + 1 :], []
        weight = None
        for made, edit, update in later:
            if update.name == undone.name:
                if weight is None:
                    weight = self._weight_before(update.name, kept)
                update = solved_anew(update, weight)
                weight = weight + torch.outer(update.right, update.left).double()
                anew.append(made)
            kept = [*kept, (made, edit, update)]
        self._set(kept)
        return anew

    def edits(self) -> list[dict[str, Any]]:
        """All edits, in the order in which they were made: what they are, where they went, and how large they are."""
        return [
            {"id": made, **edit.to_dict(), "layer": update.layer, "change": update.change, "nll": update.nll}
            for made, edit, update in self._made
        ]

    def answers(self, prompts: Sequence[str], max_new_tokens: int = 16) -> list[str]:
        """Greedy answers of the edited model."""
        return answers(self.model, self.tokenizer, prompts, max_new_tokens)

    def save_pretrained(self, folder: str | Path) -> None:
        """
        Save the edits as a LoRA adapter, and beside it what is needed to go on editing and to undo (`rank_one.json`,
        `rank_one.safetensors`), which nothing else reads.

        Raises:
            ValueError: If there are no edits: LoRA has no adapter without a matrix.
        """
        if self._peft is None:
            raise ValueError("There are no edits to save.")
        self._peft.save_pretrained(str(folder), selected_adapters=[self.adapter_name])
        save_edits(Path(folder), self._made, self.arguments, self._next)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        folder: str | Path,
        data: Iterable[Any] | None = None,
        adapter_name: str = "default",
    ) -> RankOneEditor:
        """
        Go on with the edits in a folder: undo them, or make further ones.

        Raises:
            ValueError: If the folder holds no edits of a [`RankOneEditor`], or the model has other matrices.
        """
        made, arguments, following = load_edits(Path(folder))
        editor = cls(model, tokenizer, arguments, data, adapter_name)
        for _, _, update in made:
            name = editor.layers.names([update.layer])[update.layer]
            shape = tuple(weight_of(model.get_submodule(name)).shape)
            if name != update.name or shape != (len(update.right), len(update.left)):
                raise ValueError(
                    f"The edits in {folder} change `{update.name}` of shape {(len(update.right), len(update.left))}; this "
                    f"model has `{name}` of shape {shape}. Load the base model that they were made for."
                )
        editor._next = following
        editor._set(made)
        return editor

    def _prepare(self, layers: Sequence[int]) -> None:
        """Statistics and contexts are those of the base model, whatever has been edited."""
        if self.layers.is_prepared(layers):
            return
        with self._peft.disable_adapter() if self._peft is not None else nullcontext():
            self.layers.prepare(layers)

    def _weight_before(self, name: str, made: list[tuple[int, Edit, Update]]) -> torch.Tensor:
        """The weight of a matrix of shape `(d, m)` with some edits, in double precision."""
        assert self._peft is not None
        with self._peft.disable_adapter():
            weight = weight_of(self.root.get_submodule(name)).double().cpu()
        for _, _, update in made:
            if update.name == name:
                weight = weight + torch.outer(update.right, update.left).double()
        return weight

    def _set(self, made: list[tuple[int, Edit, Update]]) -> None:
        updates = [update for _, _, update in made]
        if updates:
            self._peft = attach(self.root, self._peft, updates, self.adapter_name)
        elif self._peft is not None:
            self._peft.unload()
            self._peft = None
        self._made = made


def solved_anew(update: Update, weight: torch.Tensor) -> Update:
    """The same value written to the same key of another weight, of shape `(d, m)`."""
    key, left = update.key.double(), update.left.double()
    right = (update.value.double() - weight @ key) / (key @ left)
    return replace(update, right=right.float())
