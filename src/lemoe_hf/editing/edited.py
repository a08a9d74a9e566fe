"""A model with edits, looked at: what was edited, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..generation import answers
from ..routing.versions import copied
from ..tuners.config import EditingConfig
from ..tuners.layer import EditingLayer
from ..tuners.model import EditingModel
from .vocabularies import check_tokenizer


class EditedModel:
    """
    Args:
        model ([`~peft.PeftModel`]): With an adapter of this package.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        adapter_name (`str`, *optional*): The adapter to look at; by default the active one.

    Raises:
        TypeError: If the model has no adapter of this package.
        ValueError: If the adapter's edits were made with another tokenizer.
    """

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, adapter_name: str | None = None):
        tuner = getattr(model, "base_model", None)
        if not isinstance(tuner, EditingModel):
            raise TypeError(
                f"{type(self).__name__} needs a PeftModel with an adapter of lemoe_hf; got {type(model).__name__}. "
                f"Make one with `get_peft_model(model, LEMoEConfig())`."
            )
        self.model, self.tuner, self.tokenizer = model, tuner, tokenizer
        self.adapter_name = tuner._adapter(adapter_name)
        self.left_out: set[int] = set()  # edits, while a block of `without` is running
        check_tokenizer(tokenizer, self._lead.stamp(self.adapter_name))

    @property
    def config(self) -> EditingConfig:
        return self.tuner.peft_config[self.adapter_name]

    @property
    def _lead(self) -> EditingLayer:
        """The layer that knows the edits."""
        return self.tuner.layers_of(self.adapter_name)[0]

    @property
    def root(self) -> torch.nn.Module:
        return self.tuner.model

    def check_active(self) -> None:
        """
        Raises:
            ValueError: If the adapter is not active, or adapters are disabled.
        """
        if self.adapter_name not in self._lead.active_adapters:
            raise ValueError(
                f"The adapter {self.adapter_name!r} is not active, so that nothing goes through it. Call "
                f"`model.set_adapter({self.adapter_name!r})` first."
            )
        if self._lead.disable_adapters:
            raise ValueError("The adapters are disabled: nothing goes through them. Leave `disable_adapter()` first.")
        embedding = self.root.get_input_embeddings()
        if embedding.weight.device.type == "meta" and not hasattr(embedding, "_hf_hook"):
            raise ValueError(
                "The base model is on the device `meta`: it has shapes and no weights. Load it with its weights."
            )

    def edits(self) -> list[dict]:
        """
        The ledger: every edit with its `id`, the `expert` that holds it, and the `edit` itself, oldest first.

        There is no `edit` in those that came from an adapter pushed with `push_edits=False`.
        """
        entries = self.tuner.ledger(self.adapter_name)
        for entry in entries:
            if "prompt_ids" in entry:  # made by a training loop, which knows tokens only
                entry["edit"] = {
                    "prompt": self.tokenizer.decode(entry.pop("prompt_ids"), skip_special_tokens=True),
                    "target_new": self.tokenizer.decode(entry.pop("target_ids"), skip_special_tokens=True).strip(),
                }
        return entries

    @contextmanager
    def without(self, edit_ids: set[int]):
        """
        Inside, the model answers as if these edits had not been made.

        Raises:
            ValueError: If the adapter acts on every prompt, whether an edit is found or not (`deferral=False`).
        """
        self.tuner.check_deferral(self.adapter_name)
        lead, versions = self._lead, self.tuner.context.versions
        seen = versions.latest(self.tuner.context.layers)
        for part in ("anchors", "names"):
            fewer = copied(lead.part(part, self.adapter_name))
            for edit_id in edit_ids:
                fewer.remove(edit_id)
            seen.parts[lead, lead.prefix + part, self.adapter_name] = fewer
        self.left_out = set(edit_ids)
        try:
            with versions.seeing(seen):
                yield
        finally:
            self.left_out = set()

    def answers(self, prompts: Sequence[str], max_new_tokens: Sequence[int] | int = 16) -> list[str]:
        """Greedy answers of the edited model."""
        return answers(self.model, self.tokenizer, prompts, max_new_tokens)
