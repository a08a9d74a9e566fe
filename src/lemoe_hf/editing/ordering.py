r"""
In which order, and beside which others, edits are made (LEMoE, section 4.3).

The paper forms batches of edits that are alike within a batch and unlike between batches, by K-means on the edits' anchors.
Two measures tell how well that went: W, the mean over batches of the mean pairwise cosine of anchors within a batch, and B,
the mean pairwise cosine of the batches' centroids; W - B is to be large. The measures, how clusters become batches of one
size, and the orders other than the paper's two are ours.

Axes: `n` edits, `d` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.edit import Edit
from ..generation import pad_right
from ..routing.kv_anchor import KVRouter
from .hooks import PROMPTS_AT_ONCE
from .superposition import batches_by_overlap, whitened_keys
from .tokens import TokenizedEdit, contradiction, tokenize_edit


OrderBy = Literal["none", "kmeans", "hierarchical", "superposition", "random"]
UNBOUNDED = 2**31  # tokens of a prompt: what is too long for the model, the editor tells


@dataclass(frozen=True)
class Order:
    """
    Edits in the order in which to make them.

    Args:
        by (`str`): How they were ordered.
        permutation (`list[int]`): Indices of the edits, as they were given, in the new order.
        batches (`list[list[Edit]]`): The edits in that order, cut every `step`; only the last batch may be shorter.
        within (`float`): W, how alike the edits of a batch are. `nan` where no batch holds two edits.
        between (`float`): B, how alike the batches are. `nan` where there is one batch.
    """

    by: OrderBy
    permutation: list[int]
    batches: list[list[Edit]]
    within: float
    between: float

    @property
    def gap(self) -> float:
        """W - B, which planning is to make large."""
        return self.within - self.between


def plan_order(
    edits: Sequence[Edit],
    model: PeftModel | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    by: OrderBy = "kmeans",
    step: int = 100,
    seed: int = 0,
) -> Order:
    """
    Plan in which order to make edits, and in which batches.

    Batches come in the order of their earliest edits, and the edits of a batch in the order in which they were given,
    except for `"random"`. A plan depends on nothing but its arguments and the base model: edits that the model has
    already do not change it.

    Args:
        edits (`Sequence[Edit]`): All that are to be made.
        model (`PeftModel` or `PreTrainedModel`): The model to be edited; for `"superposition"` with its LEMoE adapter.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        by (`str`, *optional*, defaults to `"kmeans"`):
            `"kmeans"`, the paper's: as many clusters of anchors as there are batches. `"hierarchical"`: the same with
            agglomerative clusters (Ward's). `"superposition"`: edits whose keys overlap, see [`batches_by_overlap`].
            `"none"`: as given. `"random"`: at random, to compare with.
        step (`int`, *optional*, defaults to `100`): Edits of a batch.
        seed (`int`, *optional*, defaults to `0`): Of `"random"`, and of the first centres of `"kmeans"`.

    Raises:
        ValueError: If there are no edits, `by` is unknown, `step` is too small for batches to be planned, or a prompt
            comes with two targets, of which the order would decide which one holds.
        TypeError: If `by="superposition"` and the model has no LEMoE adapter.

    Example:

        >>> for batch in plan_order(edits, model, tokenizer, by="kmeans", step=100).batches:
        ...     editor.edit(batch)
    """
    _check(edits, by, step)
    items = [tokenize_edit(tokenizer, edit, UNBOUNDED) for edit in edits]
    anchors = anchors_of(model, items)
    if by == "random":
        permutation = torch.randperm(len(edits), generator=torch.Generator().manual_seed(seed)).tolist()
    elif by == "none" or len(edits) <= step:
        permutation = list(range(len(edits)))
    else:
        if by == "superposition":
            batches = batches_by_overlap(whitened_keys(model, tokenizer, items), step)
        else:
            batches = batches_by_cluster(anchors, clusters_of(anchors, -(-len(edits) // step), by, seed), step)
        batches = sorted(map(sorted, batches), key=lambda batch: (len(batch) < step, batch))
        permutation = [index for batch in batches for index in batch]
    cut = [permutation[first : first + step] for first in range(0, len(edits), step)]
    return Order(by, permutation, [[edits[i] for i in batch] for batch in cut], *similarities(anchors, cut))


def _check(edits: Sequence[Edit], by: str, step: int) -> None:
    if not edits:
        raise ValueError("There are no edits to order: the list is empty.")
    if by not in get_args(OrderBy):
        raise ValueError(f"`by` must be one of {', '.join(get_args(OrderBy))}; got {by!r}.")
    least = 1 if by in ("none", "random") else 2
    if step < least:
        raise ValueError(
            f"`step` must be at least {least} for `by={by!r}`; got {step!r}. To make edits one at a time, plan with the "
            f"number of edits that share an expert, and follow the permutation."
        )
    pair = contradiction(edits)
    if pair and by != "none":
        raise ValueError(
            f"The prompt {pair[1].prompt!r} comes with the targets {pair[0].target_new!r} and {pair[1].target_new!r}. The "
            f"later one holds, so that these edits cannot be reordered. Keep one, or pass `by='none'`."
        )


# ----------------------------------------------------------------------------------------------------------- measures


def similarities(anchors: torch.Tensor, batches: Sequence[Sequence[int]]) -> tuple[float, float]:
    """
    W and B of batches.

    Args:
        anchors (`torch.Tensor` of shape `(n, d)`): Of unit norm.
        batches (`Sequence[Sequence[int]]`): Indices of the edits of each batch.
    """
    parts = [anchors[list(batch)].double() for batch in batches]
    within = torch.stack([mean_cosine(part) for part in parts]).nanmean()
    between = mean_cosine(F.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1))
    return within.item(), between.item()


def mean_cosine(vectors: torch.Tensor) -> torch.Tensor:
    """Mean cosine of the pairs among vectors of unit norm, of shape `(n, d)`; `nan` for a single one."""
    num = len(vectors)
    if num == 1:
        return vectors.new_tensor(torch.nan)
    return (vectors.sum(0).square().sum() - num) / (num * (num - 1))


def anchors_of(model: PeftModel | PreTrainedModel, items: Sequence[TokenizedEdit]) -> torch.Tensor:
    """The anchors that the paper routes by (section 4.2), of shape `(n, d)` and of unit norm: mean input embeddings."""
    device, found = next(model.get_input_embeddings().parameters()).device, []
    for first in range(0, len(items), PROMPTS_AT_ONCE):
        ids, _ = pad_right([item.prompt for item in items[first : first + PROMPTS_AT_ONCE]], -1, device)
        with torch.no_grad():
            found.append(KVRouter.anchors_of(model, ids).float().cpu())
    return F.normalize(torch.cat(found), dim=-1)


# ----------------------------------------------------------------------------------------------------------- clusters


def clusters_of(vectors: torch.Tensor, num: int, by: str, seed: int) -> torch.Tensor:
    """The cluster of each vector, of shape `(n,)`."""
    from sklearn.cluster import AgglomerativeClustering, KMeans  # takes a second to import
    from threadpoolctl import threadpool_limits

    method = KMeans(num, random_state=seed) if by == "kmeans" else AgglomerativeClustering(num)
    with threadpool_limits(1):  # several threads add up in varying order, and a plan is to be the same each time
        return torch.from_numpy(method.fit_predict(vectors.numpy())).long()


def batches_by_cluster(vectors: torch.Tensor, labels: torch.Tensor, step: int) -> list[list[int]]:
    """
    Make batches of `step` edits each from clusters of any size.

    Every cluster becomes one batch, the largest first. It takes the edits nearest to its centre of those that are left:
    its own before others, so that a large cluster leaves its outskirts to later batches, and a small one is filled up.

    Args:
        vectors (`torch.Tensor` of shape `(n, d)`): Of unit norm.
        labels (`torch.Tensor` of shape `(n,)`): The cluster of each, below the number of batches.
    """
    num = -(-len(vectors) // step)
    centres = F.normalize(vectors.new_zeros(num, vectors.shape[1]).index_add(0, labels, vectors), dim=-1)
    left, batches = torch.ones(len(vectors), dtype=torch.bool), []
    for cluster in torch.bincount(labels, minlength=num).argsort(descending=True, stable=True):
        is_own = labels == cluster
        nearness = vectors @ centres[cluster] + 3.0 * is_own  # cosines differ by 2 at most
        nearest = nearness.masked_fill(~left, -torch.inf).argsort(descending=True, stable=True)
        batch = nearest[: min(step, int(left.sum()))]
        left[batch] = False
        batches.append(batch.tolist())
    return batches
