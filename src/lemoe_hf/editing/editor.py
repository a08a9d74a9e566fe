"""Correct a model, again and again."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..generation import evaluating, pad_right, padding_of
from ..routing.anchors import Anchor
from ..routing.relations import Relations
from ..structure import text_config
from .activations import CachedBatch
from .arguments import EditingArguments
from .edited import EditedModel
from .explanation import Explanation, explain
from .parallel import processes, train_by_all_processes
from .push import push_model
from .relations import fit_relations, learn_vocabulary, relation_keys
from .result import EditResult
from .samples import Sample, samples_of
from .save import save_adapter
from .scale import output_scale
from .tokens import Calibration, TokenizedEdit, tokenize_edits
from .training import EditingError, TrainingOutcome, train_experts
from .trunk import Trunk


@dataclass(frozen=True)
class Step:
    """Edits that are trained together, and whether that fills their expert."""

    edits: list[Edit]
    fills: bool = True


class LifelongEditor(EditedModel):
    """
    Edits a model that has a LEMoE adapter, as often as you like.

    Every edit is trained in an expert of its own (`edits_per_expert=1`, the default) and committed at once: what is
    edited later cannot touch it. The weights of the base model are never changed, and prompts that are in scope of no
    edit get the base model's own logits.

    Args:
        model ([`~peft.PeftModel`]): From `get_peft_model(model, LEMoEConfig(...))` or `PeftModel.from_pretrained`.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        arguments ([`EditingArguments`], *optional*): How to train. By default what is best for the model's config.
        adapter_name (`str`, *optional*): The adapter to edit; by default the active one.

    Raises:
        TypeError: If the model has no LEMoE adapter.
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
        pad = padding_of(tokenizer)
        default = EditingArguments() if self.config.normalize else EditingArguments.paper()
        self.arguments = arguments or default
        self._calibration: Calibration | None = None
        self._trunk = Trunk(self.root, self.tuner.context, pad)

    # --------------------------------------------------------------------------------------------------------- editing

    def edit(self, edits: Edit | Sequence[Edit]) -> EditResult:
        """
        Make edits: train, commit, and tell what changed.

        Editing a prompt again supersedes the earlier edit. Edits are committed in groups of `arguments.batch_size`; if
        one group fails, those before it stay and it leaves no trace.

        Raises:
            ValueError: If there are no edits, one of them has no target tokens or is longer than the model's context,
                two of them give one prompt different targets, or the adapter is not active.
            EditingError: If training breaks down; the message names the edits.
        """
        edits = [edits] if isinstance(edits, (Edit, str, dict)) else list(edits)
        tokenized = self._tokenized(edits)
        self.check_active()
        began = time.perf_counter()
        was_trainable = self._lead.lemoe_open[self.adapter_name].in_proj.requires_grad
        records: list[dict] = []
        try:
            with evaluating(self.root):
                self.prepare()
                # A training loop may have left edits there, and more of them than an expert is to take; and those that came
                # without their texts cannot be replayed.
                held = self._in_open_expert()
                if len(held) >= self.config.edits_per_expert or any("edit" not in entry for entry in held):
                    self.tuner.commit(adapter_name=self.adapter_name)
                first = 0
                for step in self._plan(edits):
                    records += self._make(step, tokenized[first : first + len(step.edits)])
                    first += len(step.edits)
        finally:
            for layer in self.tuner.lemoe_layers(self.adapter_name):
                layer.lemoe_open[self.adapter_name].requires_grad_(was_trainable)
            if self.adapter_name in self._lead.lemoe_router:
                self._router.requires_grad_(was_trainable)
        return EditResult(self, records, time.perf_counter() - began)

    def _tokenized(self, edits: list[Edit]) -> list[TokenizedEdit]:
        limit = getattr(text_config(self.root), "max_position_embeddings", None) or -1
        limit = limit if limit > 0 else 2**31  # XLNet, which has no limit, says -1
        return tokenize_edits(self.tokenizer, edits, limit, self.arguments.contexts)

    @torch.no_grad()
    def prepare(self) -> None:
        """
        Measure what edits need to know of the base model; the first edit does it, unless it was done before.

        Telling relations apart is learned for the first adapter of a base model (see `fit_relations`), in some seconds.
        """
        if self._calibration is None:
            self._calibration = Calibration(self.tokenizer)
        with evaluating(self.root):
            if self.config.normalize and self.config.output_scale is None:
                self._set_output_scale()
            vocabulary = self._lead.vocabulary(self.adapter_name)
            if not vocabulary.is_known:
                learn_vocabulary(vocabulary, self.tokenizer)
            if self._relations is not None and not self._relations.is_fitted:
                fit_relations(self._relations, vocabulary, self.root, self.tokenizer)

    def _set_output_scale(self) -> None:
        scale = output_scale(self.root, self.tuner.context, self._lead, self.tokenizer)
        if self.edits():  # from a training loop, which knows of no scale; a power of two takes no bit from them
            scale = 2.0 ** round(math.log2(scale))
            for layer in self.tuner.lemoe_layers(self.adapter_name):
                for experts in (layer.lemoe_bank[self.adapter_name], layer.lemoe_open[self.adapter_name]):
                    experts.out_proj.div_(scale)
        self.config.output_scale = scale

    @property
    def _relations(self) -> Relations | None:
        """What tells edits of one subject apart; `None` where the config does not ask for it, or the model cannot."""
        has_any = self.adapter_name in self._lead.lemoe_relations and self.tuner.context.taps[self.adapter_name]
        return self._lead.lemoe_relations[self.adapter_name] if has_any else None

    def _plan(self, edits: list[Edit]) -> Iterable[Step]:
        """Group edits: side by side, or as they fill one expert after the other."""
        size = self.config.edits_per_expert
        if size == 1:
            for first in range(0, len(edits), self.arguments.batch_size):
                yield Step(edits[first : first + self.arguments.batch_size])
            return
        room = size - len(self._in_open_expert())
        while edits:
            yield Step(edits[:room], fills=len(edits) >= room)
            edits, room = edits[room:], size

    def _in_open_expert(self) -> list[dict]:
        if not self.tuner.has_open_edits(self.adapter_name):
            return []
        num_committed = len(self._lead.lemoe_bank[self.adapter_name])
        return [entry for entry in self.edits() if entry["expert"] >= num_committed]

    def _make(self, step: Step, tokenized: list[TokenizedEdit]) -> list[dict]:
        """Train and commit one group; on any failure the open experts are what they were."""
        name, layers = self.adapter_name, self.tuner.lemoe_layers(self.adapter_name)
        alone = self.config.edits_per_expert == 1
        replayed = [] if alone else self._replay(step)
        before = [(deepcopy(layer.lemoe_open[name]), deepcopy(dict(layer.lemoe_router))) for layer in layers]
        try:
            anchors, entries = self._to_store(step, tokenized)
            keys = self._keys(anchors, entries, tokenized)
            targets = [
                (entry["id"], target)
                for entry, item in zip(entries, tokenized, strict=True)
                for target in item.targets
            ]
            if self._shares_out:
                outcome = train_by_all_processes(
                    layers, name, len(tokenized), lambda mine: self._train([tokenized[i] for i in mine])[0]
                )
            else:
                outcome, batch = self._train([*tokenized, *replayed])
        except BaseException as error:
            for layer, (experts, routers) in zip(layers, before, strict=True):
                layer.lemoe_open[name] = experts
                layer.lemoe_router.update(routers)
            if isinstance(error, EditingError):
                failed = [step.edits[i].prompt for i in (error.experts if alone else range(len(step.edits)))]
                message = f"{error} Nothing of this batch was kept. Edits: {failed}."
                raise EditingError(message, error.experts) from None
            raise
        if self.config.routing == "kv_anchor" and self.config.router_replay and step.fills:
            bank = layers[0].lemoe_router_bank[name]
            bank.remember(batch.anchors, len(bank.keys) + batch.expert)
        if step.fills:
            self.tuner.commit(anchors, entries, name, targets)
        else:
            self.tuner.store(anchors, entries, name, targets)
        if keys is not None:
            layers[0].remember(name, *keys)
        return [
            entry | {"loss": outcome.losses[i if alone else 0], "steps": outcome.steps[i if alone else 0]}
            for i, entry in enumerate(entries)
        ]

    @property
    def _shares_out(self) -> bool:
        independent = self.config.edits_per_expert == 1 and self.config.routing == "nearest_anchor"
        return self.arguments.share_out and independent and processes().num_processes > 1

    def _train(self, tokenized: list[TokenizedEdit]) -> tuple[TrainingOutcome, CachedBatch]:
        """Open an expert for each edit, or one for all where it holds several, and train."""
        name, layers = self.adapter_name, self.tuner.lemoe_layers(self.adapter_name)
        alone = self.config.edits_per_expert == 1
        if alone or not self._in_open_expert():
            for layer in layers:
                layer.open_experts(name, len(tokenized) if alone else 1, self.arguments.seed)
        if alone and name in layers[0].lemoe_router:
            layers[0].open_keys(name, len(tokenized))
        batch, samples = self._trunk.run(self._samples(tokenized))
        if self.config.routing == "kv_anchor":
            prompts = [sample.prompt for sample in samples]
            ids, _ = pad_right(prompts, -1, batch.start.device)
            batch.anchors = self._router.anchors_of(self.root, ids)
            if self.config.router_replay:
                batch.replayed = self._lead.lemoe_router_bank[name].others(batch.anchors)
        return train_experts(self.tuner, name, batch, self.arguments), batch

    def _replay(self, step: Step) -> list[TokenizedEdit]:
        """What the open expert holds already, less what has been superseded since."""
        latest = {entry["edit"]["prompt"].strip(): Edit(**entry["edit"]) for entry in self._in_open_expert()}
        for edit in step.edits:
            latest.pop(edit.prompt.strip(), None)
        return self._tokenized(list(latest.values())) if latest else []

    def _samples(self, tokenized: list[TokenizedEdit]) -> list[list[Sample]]:
        """What every edit is trained on, in an expert for each or in one for all."""
        ends = self.arguments.end_of_sequence and self.tokenizer.eos_token_id is not None
        end = [self.tokenizer.eos_token_id] if ends else []
        alone, anywhere = self.config.edits_per_expert == 1, self.config.routing == "kv_anchor"
        return [samples_of(item, i if alone else 0, end, anywhere) for i, item in enumerate(tokenized)]

    @property
    def _router(self):
        return self._lead.lemoe_router[self.adapter_name]

    def _to_store(self, step: Step, tokenized: list[TokenizedEdit]) -> tuple[list[Anchor], list[dict]]:
        """Anchors and ledger entries of edits that are about to be made."""
        num_committed = len(self._lead.lemoe_bank[self.adapter_name])
        first_id = self._lead.lemoe_anchors[self.adapter_name].next_edit()
        anchors, entries = [], []
        for i, (edit, item) in enumerate(zip(step.edits, tokenized, strict=True)):
            expert = num_committed + (i if self.config.edits_per_expert == 1 else 0)
            entries.append({"id": first_id + i, "expert": expert, "edit": edit.to_dict()})
            anchors += self._calibration.anchors(item, first_id + i, expert)
        return anchors, entries

    def _keys(
        self, anchors: list[Anchor], entries: list[dict], tokenized: list[TokenizedEdit]
    ) -> tuple[list[int], torch.Tensor] | None:
        """Of the edits that are found by a subject: their ids, and what they are about."""
        relations, pad = self._relations, self.tokenizer.pad_token_id
        by_subject = {anchor.edit for anchor in anchors if not anchor.is_prompt}
        items = [item for entry, item in zip(entries, tokenized, strict=True) if entry["id"] in by_subject]
        if relations is None or not items:
            return None
        vocabulary = self._lead.vocabulary(self.adapter_name)
        keys = relation_keys(relations, vocabulary, self.root, self.tuner.context, self.adapter_name, items, pad)
        return sorted(by_subject), keys

    # ------------------------------------------------------------------------------------------------ looking and undo

    def undo(self, edit_id: int) -> dict:
        """
        Take one edit back, exactly: its prompt gets its earlier answer, and nothing else changes.

        Returns:
            The ledger's entry of the edit.

        Raises:
            KeyError: If there is no such edit.
            ValueError: If the adapter routes every prompt, whether an edit is found or not (`deferral=False`).
        """
        return self.tuner.remove_edit(edit_id, self.adapter_name)

    def explain(self, prompt: str) -> Explanation:
        """
        Which edit answers a prompt, found by what and how surely; or that the base model does.

        Raises:
            TypeError, ValueError: As of [`explain`].
        """
        return explain(self, prompt)

    def save_pretrained(self, save_directory: str | Path) -> None:
        """
        Save the adapter, and beside it `edits.jsonl`, the ledger for people to read.

        Everything is written to a folder within it first: a full disk, or a crash, costs nothing that was saved.

        Raises:
            OSError: If the folder cannot be written.
        """
        save_adapter(self.model, self.adapter_name, self.edits(), Path(save_directory))

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
