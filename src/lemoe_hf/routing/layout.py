"""Which tokens of a batch belong to which text: padded rows, rows that hold several texts, and requests that share a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch


@dataclass(frozen=True)
class Piece:
    """
    Tokens of one text in a forward pass.

    Args:
        row (`int`): The row of the batch that they stand in.
        places (`list[int]`): Their columns within that row.
        tokens (`list[int]`): The tokens, -2 for an embedding of no known token.
        labels (`list[int]`, *optional*): -100 where there is none.
        request (*optional*): The request that they are of, where an engine batches requests.
    """

    row: int
    places: list[int]
    tokens: list[int]
    labels: list[int] | None = None
    request: Any = None


def pieces_of(ids: torch.Tensor, inputs: Mapping[str, Any], keeps_cache: bool) -> list[Piece]:
    """
    Split a batch into the texts that it holds.

    Args:
        ids (`torch.Tensor` of shape `(b, t)`): Tokens.
        inputs (`Mapping`): What the forward pass was given.
        keeps_cache (`bool`): Whether keys and values go into a cache.

    Returns:
        A piece for each text, row by row; of rows one each, in their order, where no row holds several.

    Raises:
        ValueError: If a row holds several texts that would attend to each other.
    """
    mask, labels = inputs.get("attention_mask"), token_labels(inputs)
    is_text = torch.ones_like(ids, dtype=torch.bool)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        is_text = mask[:, -ids.shape[1] :].to(ids.device) != 0
    tokens, kept = ids.tolist(), is_text.tolist()
    label_rows = [None] * len(tokens) if labels is None else labels.tolist()
    pieces = []
    for row, ends in enumerate(ends_within_rows(ids, is_text, inputs, keeps_cache)):
        for first, last in pairwise([0, *ends, ids.shape[1]]):
            places = [place for place in range(first, last) if kept[row][place]]
            of_labels = label_rows[row]
            pieces.append(
                Piece(
                    row,
                    places,
                    [tokens[row][place] for place in places],
                    None if of_labels is None else [of_labels[place] for place in places],
                )
            )
    return pieces


def ends_within_rows(
    ids: torch.Tensor, is_text: torch.Tensor, inputs: Mapping[str, Any], keeps_cache: bool
) -> list[list[int]]:
    """For each row the columns at which another text begins."""
    rows, width = ids.shape
    lengths = inputs.get("cu_seq_lens_q", inputs.get("cu_seqlens"))
    if isinstance(lengths, torch.Tensor):
        if rows != 1:
            raise ValueError(f"`cu_seq_lens_q` tells the texts of one row; got {rows} rows. Put them into one.")
        if not isinstance(inputs.get("position_ids"), torch.Tensor):
            raise ValueError(
                "`cu_seq_lens_q` tells several texts of a row, and there are no `position_ids`: attention other than flash "
                "attention would let the texts attend to each other. Pass `position_ids` that begin anew with each text."
            )
        return [[end for end in dict.fromkeys(lengths.tolist()) if 0 < end < width]]
    index = inputs.get("seq_idx")
    if isinstance(index, torch.Tensor):
        return [(row.diff() != 0).nonzero().flatten().add(1).tolist() for row in index]
    position = inputs.get("position_ids")
    if not isinstance(position, torch.Tensor) or position.dim() != 2 or position.shape[1] != width or width < 2:
        return [[] for _ in range(rows)]
    position = position.expand(rows, -1)
    # Padding has whatever position; between two tokens of one text positions go on.
    begins = is_text[:, 1:] & is_text[:, :-1] & (position[:, 1:] <= position[:, :-1])
    if begins.any():
        mask = inputs.get("attention_mask")
        if keeps_cache or (isinstance(mask, torch.Tensor) and mask.dim() == 2):
            row, column = begins.nonzero()[0].tolist()
            raise ValueError(
                f"Row {row} holds several texts: its `position_ids` begin anew in column {column + 1}. With a cache or an "
                f"`attention_mask` of two dimensions the model lets them attend to each other, and an edit in one would reach "
                f"the others. Pass `use_cache=False` and no mask, or a row for each text."
            )
    return [row.nonzero().flatten().add(1).tolist() for row in begins]


def token_labels(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """The labels among the arguments of a forward pass, unless they are one a row, as of a classifier."""
    labels = inputs.get("labels")
    return labels if labels is not None and labels.dim() > 1 else None


def prompt_ends(labels: list[int]) -> list[int] | None:
    """
    The last columns of the prompts of a text: those in front of a label, or the last one where there is no label yet. `None`
    where labels tell no prompt from an answer, since every token has one.
    """
    if all(label != -100 for label in labels):
        return None
    if all(label == -100 for label in labels):
        return [len(labels) - 1]
    return [i for i in range(len(labels) - 1) if labels[i] == -100 != labels[i + 1]]
