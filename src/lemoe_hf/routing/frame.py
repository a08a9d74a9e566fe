"""What is known beyond one forward pass: the call of `generate` that it is a part of, and what that tells of its texts."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from .cached import CachedTexts
from .layout import Piece, prompt_ends
from .passes import Pass, Places
from .text import Text
from .versions import View


@dataclass
class Running:
    """
    A forward pass: of each adapter its texts, or what acts where that is known from the start. Of one that is traced into a
    graph nothing tells the end. It sees one version of what adapters have stored, that of its call of `generate` if there is
    one.
    """

    embed: nn.Module | None = None
    passes: dict[str, Pass] = field(default_factory=dict)
    is_traced: bool = False
    known: dict[str, Places] = field(default_factory=dict)
    kept: CachedTexts | None = None
    context: object | None = None
    view: View | None = None


@dataclass
class Frame:
    """
    A call of `generate`.

    Args:
        context (`object`): The [`RoutingContext`] of the model.
        prompt (`torch.Tensor` of shape `(b, t)`, *optional*): Its prompts, -1 where there is padding.
        kept ([`CachedTexts`]): The texts of a model whose cache can keep none.
        passes (`int`): Forward passes so far.
        last ([`Running`], *optional*): The last of them.
    """

    context: object
    prompt: torch.Tensor | None
    kept: CachedTexts = field(default_factory=CachedTexts)
    passes: int = 0
    last: Running | None = None

    @property
    def columns(self) -> int:
        return 0 if self.prompt is None else self.prompt.shape[1]

    def mask_of(self, mask: Any, ids: torch.Tensor, first: int) -> torch.Tensor:
        """Which tokens of a pass, from the column `first` on, are no padding: with a static cache only the prompts tell."""
        if isinstance(mask, torch.Tensor) and mask.dim() == 2:
            return mask
        told = torch.ones_like(ids)
        if self.prompt is not None and first < self.columns:
            part = self.prompt[:, first : first + ids.shape[1]].to(ids.device) != -1
            told[:, : part.shape[1]] = part.repeat_interleave(len(ids) // len(part), 0)
        return told


def tell_ends(text: Text, piece: Piece, first: int, frame: Frame | None, columns: int) -> None:
    """Tell a text where its prompts end, if labels or `generate` do."""
    if piece.labels is not None:
        ends = prompt_ends(piece.labels)
        text.prompt = None if ends is None else first + max(ends, default=-1) + 1
        text.ends |= {first + end for end in ends or ()}
        text.answers_all = True
    elif frame is None:
        text.prompt = None
    else:
        within = bisect_left(text.places, frame.columns)
        text.prompt, text.answers_all = within if columns >= frame.columns else len(text) + 1, False
        if within > first and columns >= frame.columns:
            text.ends = {within - 1}
        text.close_past()


def check_known(frame: Frame | None, columns: int) -> None:
    """
    Raises:
        ValueError: If a cache holds columns of texts that went by unseen; `generate` knows their tokens.
    """
    if frame is None or frame.columns < columns:
        raise ValueError(
            f"The cache holds {columns} columns of texts that this model has not seen with its edits: which subjects they "
            f"name and what they ask cannot be told. Pass the whole text, or fill the cache by the edited model."
        )


def take_back(cache: Any, columns: int) -> None:
    """
    Crop a cache to before the first column on which an edit has acted in an earlier turn, as far as it can be cropped: keys
    and values of what was answered are to be the base model's, as where the conversation is given as a whole.
    """
    kept = getattr(cache, "lemoe_texts", None)
    if (
        kept is None
        or kept.length_in(cache) >= columns
        or not all(map(can_be_cropped, getattr(cache, "layers", [None])))
    ):
        return
    places = [text.places[text.acted] for texts in kept.texts.values() for text in texts if text.acted < len(text)]
    if places and min(places) < kept.length_in(cache):
        cache.crop(min(places) - kept.length_in(cache))


def can_be_cropped(layer: Any) -> bool:
    """Whether a layer of a cache can go back: one that keeps all keys and values, or whose window has not yet moved."""
    is_within = isinstance(layer, DynamicSlidingWindowLayer) and layer.get_seq_length() < layer.sliding_window
    return type(layer) is DynamicLayer or is_within
