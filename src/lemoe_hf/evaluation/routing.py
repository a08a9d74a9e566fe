"""Do prompts find their edits, whatever the experts then answer?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..editing.editor import LifelongEditor
from ..editing.explanation import acting, looked_at
from .accuracy import Probe, over_probes


class Routing:
    """
    The route of prompts, when they are over.

    Args:
        batch_size (`int`): Prompts at once.
    """

    name = "routing"

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit]
    ) -> list[dict[str, float]]:
        editor = LifelongEditor(model, tokenizer)
        made = {key_of(**entry["edit"]): entry["expert"] for entry in editor.edits() if "edit" in entry}

        def reaches_its_own(name: str, probes: list[Probe]) -> Iterator[dict[str, float]]:
            for (edit, *_), experts in zip(probes, self._experts(editor, probes), strict=True):
                found = float(made.get(key_of(edit.prompt, edit.target_new)) in experts)
                yield {f"routed_{name}": found, f"deferred_{name}": float(not experts)}

        def is_deferred(probes: list[Probe]) -> Iterator[dict[str, float]]:
            for experts in self._experts(editor, probes):
                yield {"deferred": float(not experts)}

        of_prompts = over_probes(edits, "prompt", partial(reaches_its_own, "prompt"))
        of_rephrasings = over_probes(edits, "rephrase", partial(reaches_its_own, "rephrase"))
        of_others = over_probes(edits, "locality", is_deferred)
        return [a | b | c for a, b, c in zip(of_prompts, of_rephrasings, of_others, strict=True)]

    def _experts(self, editor: LifelongEditor, probes: list[Probe]) -> Iterator[list[int]]:
        """Of each prompt, the experts that act when it is over."""
        ids = [editor.tokenizer(prompt.rstrip())["input_ids"] for _, prompt, _ in probes]
        for first in range(0, len(ids), self.batch_size):
            batch = ids[first : first + self.batch_size]
            yield from (acting(text) for text, _ in looked_at(editor, batch))


def key_of(prompt: str, target_new: str, **other_fields: object) -> tuple[str, str]:
    return prompt.strip(), target_new.strip()
