"""Correct a model, again and again."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..generation import evaluating
from ..routing.anchors import Anchor
from ..routing.name_index import Name
from .aliases import add_alias, warn_of_others
from .arguments import EditingArguments
from .edited import EditedModel
from .elder import ELDERProcedure
from .explanation import Explanation, explain
from .lemoe import LEMoEProcedure
from .memoe import MEMoEProcedure
from .preparation import keys_of, prepare
from .procedure import Group
from .push import push_model
from .result import EditResult
from .save import save_adapter
from .spelling import Naming
from .tokens import Calibration
from .training import EditingError, in_plain_mode, warn_of_unlearned


PROCEDURES = {"LEMOE": LEMoEProcedure, "MEMOE": MEMoEProcedure, "ELDER": ELDERProcedure}


class LifelongEditor(EditedModel):
    """
    Edits a model that has an adapter of this package, as often as you like.

    With a LEMoE adapter every edit is trained in an expert of its own (`edits_per_expert=1`, the default) and committed at
    once: what is edited later cannot touch it. The weights of the base model are never changed, and prompts that are in scope
    of no edit get the base model's own logits.

    Args:
        model ([`~peft.PeftModel`]): From `get_peft_model(model, LEMoEConfig(...))` or `PeftModel.from_pretrained`.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        arguments ([`EditingArguments`], *optional*): How to train. By default what is best for the model's config.
        adapter_name (`str`, *optional*): The adapter to edit; by default the active one.

    Raises:
        TypeError: If the model has no adapter of this package.
        ValueError: If the tokenizer has no padding token.

    Example:

        >>> model = get_peft_model(AutoModelForCausalLM.from_pretrained(name), LEMoEConfig())
        >>> editor = LifelongEditor(model, tokenizer)
        >>> print(editor.edit([Edit("Which country is Shmavon Shmavonyan from?", "Yemen")]))
    """

    def __init__(
        self,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        arguments: EditingArguments | None = None,
        adapter_name: str | None = None,
    ):
        super().__init__(model, tokenizer, adapter_name)
        procedure = PROCEDURES[self.config.peft_type]
        self.arguments = arguments or replace(procedure.default_arguments(self.config))
        self._procedure = procedure(self, self.arguments)
        self._calibration: Calibration | None = None
        self._naming: Naming | None = None

    # --------------------------------------------------------------------------------------------------------- editing

    @in_plain_mode
    def edit(self, edits: Edit | Sequence[Edit]) -> EditResult:
        """
        Make edits: train, commit, and tell what changed.

        Editing a prompt again supersedes the earlier edit. Edits are committed in groups of `arguments.batch_size`; if
        one group fails, those before it stay and it leaves no trace.

        Raises:
            TypeError: If they are no edits.
            ValueError: If there are no edits, one of them has no target tokens or is longer than the model's context,
                two of them give one prompt different targets, or the adapter is not active.
            EditingError: If training breaks down; the message names the edits.
        """
        edits = list(edits) if isinstance(edits, Iterable) and not isinstance(edits, (str, dict)) else [edits]
        if self.left_out:
            raise ValueError(f"The edits {sorted(self.left_out)[:20]} are left out here. Leave `without` first.")
        items = self._procedure.tokenized(edits)
        self.check_active()
        began, records = time.perf_counter(), []
        with self.tuner.context.versions.writer(), evaluating(self.root), self._procedure.trainable():
            self.prepare()
            for group in self._procedure.plan(edits, items):
                records += self._make(group)
        warn_of_unlearned(records)
        return EditResult(self, records, time.perf_counter() - began)

    @in_plain_mode
    def prepare(self) -> None:
        """
        Measure what edits need to know of the base model; the first edit does it, unless it was done before.

        Telling relations apart is learned for the first adapter of a base model (see `fit_relations`), in some seconds.
        """
        if self._calibration is None:
            self._calibration, self._naming = Calibration(self.tokenizer), Naming()
        prepare(self._procedure)

    def _make(self, group: Group) -> list[dict]:
        """Train and commit a group."""
        anchors, names, entries = self._to_store(group)
        by_subject = sorted({found.edit for found in (*anchors, *names) if not found.is_prompt})
        about = [item for entry, item in zip(entries, group.items, strict=True) if entry["id"] in by_subject]
        with self._procedure.making():
            keys = keys_of(self._procedure, about)
            targets = [
                (entry["id"], target)
                for entry, item in zip(entries, group.items, strict=True)
                for target in item.targets
            ]
            try:
                outcome = self._procedure.train(group)
            except EditingError as error:
                failed = [group.edits[i].prompt for i in error.experts]
                message = f"{error} Nothing of this batch was kept. Edits: {failed}."
                raise EditingError(message, error.experts) from None
            self._procedure.commit(group, anchors, entries, targets)
            self._lead.name(self.adapter_name, names)
            if keys is not None:
                self._lead.remember(self.adapter_name, by_subject, keys)
        return [
            entry | {"loss": loss, "steps": steps}
            for entry, loss, steps in zip(entries, outcome.losses, outcome.steps, strict=True)
        ]

    def _to_store(self, group: Group) -> tuple[list[Anchor], list[Name], list[dict]]:
        """Anchors, names and ledger entries of edits that are about to be made."""
        lead = self._lead
        first_id, anchors, names, entries = lead.next_edit(self.adapter_name), [], [], []
        spells = self.config.finds_names and lead.vocabulary(self.adapter_name).is_spelled
        made = zip(group.edits, group.items, self._procedure.experts_of(group), strict=True)
        for edit_id, (edit, item, expert) in enumerate(made, first_id):
            entries.append({"id": edit_id, "expert": expert, "edit": edit.to_dict()})
            found = self._calibration.anchors(item, edit_id, expert)
            if spells:  # then only the prompt is looked for by its tokens
                found = [anchor for anchor in found if anchor.is_prompt]
                names += self._naming.names(edit, edit_id)
                warn_of_others(lead.names(self.adapter_name), edit, edit.aliases or ())
            elif edit.aliases:
                warnings.warn(
                    f"The aliases {edit.aliases} of {edit.prompt!r} are of no use: this adapter finds edits by tokens alone.",
                    stacklevel=4,
                )
            anchors += found
        return anchors, names, entries

    def add_alias(self, edit_id: int, alias: str) -> None:
        """
        Let an edit also be found by another name of its subject. Undoing the edit takes it back as well.

        Raises:
            KeyError: If there is no such edit.
            ValueError: If the alias can be none (it has no letters or is an everyday word), if the edit has no subject, if its
                texts are not known, or if the adapter finds edits by tokens alone.
        """
        self.prepare()
        add_alias(self, self._naming, edit_id, alias)

    # ------------------------------------------------------------------------------------------------ looking and undo

    @in_plain_mode
    def undo(self, edit_id: int) -> dict:
        """
        Take one edit back, exactly: its prompt gets its earlier answer, and nothing else changes.

        Returns:
            The ledger's entry of the edit.

        Raises:
            KeyError: If there is no such edit.
            ValueError: If the adapter acts on every prompt, whether an edit is found or not (`deferral=False`).
        """
        return self.tuner.remove_edit(edit_id, self.adapter_name)

    def explain(self, prompt: str) -> Explanation:
        """
        Which edit answers a prompt, found by what and how surely; or that the base model does.

        Raises:
            TypeError, ValueError: As of [`explain`].
        """
        return explain(self, prompt)

    def save_pretrained(self, save_directory: str | Path, overwrite: bool = False) -> None:
        """
        Save the adapter, and beside it `edits.jsonl`, the ledger for people to read.

        Everything is written to a folder within it first: a full disk, or a crash, costs nothing that was saved.

        Args:
            save_directory (`str` or `Path`): The folder, which is made if need be.
            overwrite (`bool`, *optional*, defaults to `False`): Replace an adapter that is another one, too.

        Raises:
            OSError: If the folder cannot be written, or another process is writing to it.
            ValueError: If the folder holds an adapter that is not this one, as it was loaded or last saved; or is no name.
        """
        if not str(save_directory):
            raise ValueError("`save_directory` is empty. Pass the folder to save to, `.` for the one you are in.")
        with self.tuner.context.versions.writer():
            save_adapter(self.model, self.adapter_name, self.edits(), Path(save_directory), overwrite)

    def push_to_hub(self, repo_id: str, push_edits: bool = True, **kwargs: Any) -> CommitInfo:
        """
        Push the adapter to the Hugging Face Hub, with `edits.jsonl` and a model card.

        Args:
            repo_id (`str`): Name of the repository, which is made if need be.
            push_edits (`bool`, *optional*, defaults to `True`): Whether the texts of the edits go with it.
            kwargs: As in [`~lemoe_hf.editing.push.push_model`], which tells more about `push_edits`.
        """
        name, entries = self.adapter_name, self.edits()
        return push_model(self.model, repo_id, push_edits=push_edits, adapter_name=name, entries=entries, **kwargs)
