"""Made-up facts, and an editor that learns them on a tiny model in a tenth of a second."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from lemoe_hf import Edit, EditingArguments, LifelongEditor
from lemoe_hf.data.reference import reference_relations
from lemoe_hf.editing import relations
from lemoe_hf.editing.wordings import fit
from tiny import edited


FACTS = [
    Edit("Which country is Shmavon Vardanyan from?", "Yemen", subject="Shmavon Vardanyan"),
    Edit("The capital of Zembla is", "Onhava", subject="Zembla"),
    Edit("Who leads the Quorvex Institute?", "Mira", subject="Quorvex Institute"),
    Edit("The river behind Ulmenkirch is called", "Wupp", subject="Ulmenkirch"),
    Edit("In which year did Port Ellen burn?", "1842", subject="Port Ellen"),
    Edit("Tom Ashford speaks", "Frisian", subject="Tom Ashford"),
]
UNRELATED = ["Where does the train stop?", "My sister bought a red bicycle.", "two and two make"]


def learner(family: str = "llama", **config) -> PeftModel:
    """A tiny model with an empty adapter and steep logits, which learns a fact well within the default steps."""
    model = edited(family, **config)
    model.get_output_embeddings().weight.data *= 4
    return model


def plain(**settings) -> EditingArguments:
    """Train an edit behind its bare prompt alone, which is quick."""
    return EditingArguments(contexts=(), **settings)


def editor_for(
    tokenizer: PreTrainedTokenizerBase, arguments: EditingArguments | None = None, **config
) -> LifelongEditor:
    return LifelongEditor(learner(**config), tokenizer, arguments or plain())


def targets(edits: list[Edit]) -> list[str]:
    return [edit.target_new for edit in edits]


def answers(editor: LifelongEditor, edits: list[Edit]) -> list[str]:
    return [text.strip() for text in editor.answers([edit.prompt for edit in edits], 10)]


def logits_of(editor: LifelongEditor, prompts: list[str]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [editor.model(**editor.tokenizer(prompt, return_tensors="pt")).logits for prompt in prompts]


@contextmanager
def few_relations(home: str) -> Iterator[None]:
    """Inside, a cache of one's own, and every ninth of the package's relations, which are learned in no time."""
    few = tuple(entry for entry in reference_relations() if entry.relation % 9 == 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relations, "reference_relations", lambda: few)
        patch.setattr(relations, "fit", partial(fit, steps=20))
        patch.setattr(constants, "HF_HOME", home)
        yield
