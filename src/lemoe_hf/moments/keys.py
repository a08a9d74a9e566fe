"""Where a fact is looked up: what enters the second matrix of an FFN at the last token of its subject.

Axes: `n` edits, `m` width of a key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..structure import find_ffn_outputs
from .collect import inputs_of


class SubjectRow(NamedTuple):
    """Tokens of a text, and the column of its subject's last token."""

    ids: list[int]
    column: int


def check_subject(edit: Edit) -> tuple[int, int]:
    """
    Where the subject of an edit stands in its prompt, as characters.

    Raises:
        ValueError: If the edit does not tell its subject: a wrong guess would write the fact to another place.
    """
    span = edit.subject_span()
    if edit.subject is None or span is None:
        guess = f", such as {edit.prompt[slice(*span)]!r}" if span else ""
        raise ValueError(
            f"Keys are read at the last token of an edit's subject, and {edit.prompt!r} does not tell its own. Pass "
            f"`Edit(..., subject=...)`, a part of the prompt{guess}."
        )
    return span


def subject_row(tokenizer: PreTrainedTokenizerBase, text: str, start: int, end: int) -> SubjectRow:
    """A text with what the tokenizer puts before it, and the last token of the characters from `start` to `end`."""
    ids = list(tokenizer(text)["input_ids"])
    plain = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    lead = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
    if tokenizer.is_fast:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        last = max(i for i, (left, right) in enumerate(offsets) if left < end and right > start)
    else:
        last = len(tokenizer(text[:end], add_special_tokens=False)["input_ids"]) - 1
    return SubjectRow(ids, lead + min(max(last, 0), len(plain) - 1))


def keys_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit], layers: list[int]
) -> dict[int, torch.Tensor]:
    """
    Keys of edits behind their bare prompts, in one pass for all layers.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model. Adapters on it are part of it, and change the keys above them.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        edits (`Sequence` of [`Edit`]): Each with its subject; their targets play no part.
        layers (`list[int]`): Whose FFNs to look at.

    Returns:
        For each layer, a tensor of shape `(n, m)`.

    Raises:
        ValueError: If there are no edits, one does not tell its subject, or a layer has no FFN to be looked at.
    """
    if not edits:
        raise ValueError("There are no edits to look at: the list is empty.")
    rows = [subject_row(tokenizer, edit.prompt.rstrip(), *check_subject(edit)) for edit in edits]
    names = find_ffn_outputs(model, layers)
    found = {layer: [torch.empty(0)] * len(rows) for layer in layers}
    for indices, states in inputs_of(model, [names[layer] for layer in layers], [row.ids for row in rows]):
        for layer, inputs in zip(layers, states, strict=True):
            for i, index in enumerate(indices):
                found[layer][index] = inputs[i, rows[index].column].float().cpu()
    return {layer: torch.stack(keys) for layer, keys in found.items()}
