"""What a training loop edits: the prompts of its batches, told by their labels."""

from __future__ import annotations

from typing import Any

import torch

from .anchors import Anchor, Anchors


def prompts_in_training(
    anchors: Anchors, ids: torch.Tensor, labels: torch.Tensor | None, bos: int | None, expert: int
) -> tuple[torch.Tensor, list[int], list[Anchor], list[dict[str, Any]]]:
    """
    The prompts of a training batch that are not in the scope of the open expert yet.

    A prompt that a committed expert answers is edited again: its anchor is stored once more, and the later one wins.

    Args:
        anchors ([`Anchors`]): Those of the adapter.
        ids (`torch.Tensor` of shape `(b, t)`): Tokens of the prompts, -1 for everything else.
        labels (`torch.Tensor` of shape `(b, t)`, *optional*):
            Tokens of the answers, -100 for everything else. Without them there is no telling prompt from answer, and the
            whole input is trained.
        bos (`int`, *optional*): The token that a tokenizer may put before a text; elsewhere in a text there is none.
        expert (`int`): The open expert.

    Returns:
        The columns from which on the open expert acts, of shape `(b, 1)`, which with labels is the prompt's last token, that
        predicts the first label; the rows of the new prompts, the anchors to store, and the ledger's entries of them.
    """
    is_prompt = ids >= 0
    start = torch.zeros(ids.shape[0], 1, dtype=torch.long, device=ids.device)
    if labels is not None:
        seen = is_prompt.long().cumsum(1)
        start[:, 0] = (seen == seen[:, -1:]).long().argmax(1)
    next_edit = anchors.next_edit()
    found = {match.edit for row in anchors.find(ids) for match in row if match.is_prompt and match.expert >= expert}
    stored = {tuple(anchors.span(edit)) for edit in found}
    new: dict[tuple[int, ...], Anchor] = {}
    rows, entries = [], []
    for row in range(len(ids)):
        tokens = tuple(ids[row][is_prompt[row]].tolist())
        tokens = tokens[1:] if tokens[:1] == (bos,) else tokens
        if tokens and tokens not in stored and tokens not in new:
            acts_from = 0 if labels is None else len(tokens) - 1
            new[tokens] = Anchor(tokens, next_edit + len(new), expert, acts_from, is_prompt=True)
            target = [] if labels is None else labels[row][labels[row] != -100].tolist()
            rows.append(row)
            entries.append({"id": new[tokens].edit, "expert": expert, "prompt_ids": tokens, "target_ids": target})
    return start, rows, list(new.values()), entries
