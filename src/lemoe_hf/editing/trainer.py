"""Edits through `transformers.Trainer`.

Nothing of this is needed: a training step of any kind on `input_ids` and `labels` goes through what is in training, and
puts the prompts that it sees in scope. What is left to do at the end is, in LEMoE, to freeze the expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from ..data.edit import Edit
from ..generation import pad_right
from ..routing.anchors import Anchor
from ..tuners.model import EditingModel
from .tokens import continuation


class CommitCallback(TrainerCallback):
    """
    Freezes what a method freezes when `train()` ends: in LEMoE the expert in training, if it has learned anything. In a
    launch of several processes each then has the edits of all; their `id`s may differ, and those of the main one are saved.
    """

    def on_train_end(self, args, state, control, model=None, **kwargs):
        tuner = model.base_model
        if args is not None and args.world_size > 1:
            if not isinstance(tuner, LEMoEModel):
                raise ValueError("Only LEMoE adapters can be trained by several processes; launch this one by itself.")
            self._gather(tuner)
        tuner.end_training()

    def _gather(self, tuner: EditingModel) -> None:
        """Put in scope what other processes have trained: they share the experts' weights, but not the prompts they saw."""
        lead = tuner.layers_of()[0]
        expert = lead.expert_in_training(tuner.active_adapters[0])
        trained = [entry for entry in tuner.ledger() if entry["expert"] >= expert and "prompt_ids" in entry]
        own = {tuple(entry["prompt_ids"]): entry for entry in trained}
        seen = {tuple(entry["prompt_ids"]): entry for entry in gather_object(list(own.values()))}
        first = lead.anchors(tuner.active_adapters[0]).next_edit()
        missing = [prompt for prompt in seen if prompt not in own]
        anchors = [
            Anchor(prompt, first + i, expert, len(prompt) - 1, is_prompt=True) for i, prompt in enumerate(missing)
        ]
        tuner.store(anchors, [seen[prompt] | {"id": first + i} for i, prompt in enumerate(missing)])


class EditCollator:
    """
    Turns [`Edit`]s into right-padded `input_ids`, `attention_mask` and `labels` of shape `(b, t)`, with labels at the
    target and the end of the text only.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer

    def __call__(self, edits: Sequence[Edit]) -> dict[str, torch.Tensor]:
        prompts = [self.tokenizer(edit.prompt.rstrip())["input_ids"] for edit in edits]
        targets = [continuation(self.tokenizer, edit.prompt.rstrip(), edit.target_new.strip()) for edit in edits]
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        sequences = [prompt + target + end for prompt, target in zip(prompts, targets, strict=True)]
        ids, mask = pad_right(sequences, self.tokenizer.pad_token_id, torch.device("cpu"))
        labels = ids.masked_fill(mask == 0, -100)
        for row, prompt in enumerate(prompts):
            labels[row, : len(prompt)] = -100
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


class EditTrainer(Trainer):
    """`Trainer` on a list of [`Edit`]s: with [`EditCollator`] and [`CommitCallback`], and nothing else."""

    def __init__(self, model=None, args=None, *, processing_class: PreTrainedTokenizerBase, callbacks=(), **kwargs):
        kwargs.setdefault("data_collator", EditCollator(processing_class))
        super().__init__(
            model, args, processing_class=processing_class, callbacks=[*callbacks, CommitCallback()], **kwargs
        )
