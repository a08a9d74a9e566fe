"""
Nearest anchor routing, the default: a prompt finds the edits whose anchors it holds, and of a subject's edits the one that
it asks for. Nothing about it is trained with the edits.

Axes: `b` batch, `s` slots, `c` edits of one subject, `t` columns.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .anchors import Anchors, Match
from .relations import Relations, mean_of_sentences, words_of
from .route import Candidates, Route
from .scope import in_scope


def route(
    anchors: Anchors,
    relations: Relations | None,
    num_committed: int,
    ids: torch.Tensor,
    embed: Callable[[torch.Tensor], torch.Tensor],
    is_whole: bool,
    threshold: float | None = None,
    relation_threshold: float | None = None,
) -> Route | None:
    """
    Route prompts; the last anchor of every row stands in the last slot.

    Args:
        anchors ([`Anchors`]): Of all edits.
        relations ([`Relations`], *optional*): Without them, a subject alone puts a prompt in the scope of its edits.
        num_committed (`int`): Experts from this index on are open ones.
        ids (`torch.Tensor` of shape `(b, t)`): Tokens of the prompts, negative for everything else.
        embed (`Callable`): Input embeddings of tokens.
        is_whole (`bool`): Whether the prompts end where their tokens do, so that no token is of an answer.
        threshold (`float`, *optional*), relation_threshold (`float`, *optional*): Replace those of anchors and relations.

    Returns:
        The [`Route`], or `None` where every row is deferred.
    """
    rows = in_scope(anchors, ids, threshold, None if relations is None else relations.continuing)
    slots = max((len(row) for row in rows), default=0)
    if slots == 0:
        return None
    named: list[list[Match | None]] = [[None] * (slots - len(row)) + list(row) for row in rows]
    table = []
    for row in named:
        starts = [match.start for match in row if match] + [Route.ENDLESS]
        ends = iter(starts[1:])
        table.append([(match.expert, 1, match.start, next(ends)) if match else (0, 0, 0, 0) for match in row])
    experts, gates, start, end = torch.tensor(table, device=ids.device).unbind(-1)
    found = Route(
        experts=experts,
        gates=gates.float(),
        start=start,
        end=end,
        num_committed=num_committed,
        uses_open=any(
            each.expert >= num_committed for row in rows for match in row for each in (match, *match.rivals)
        ),
        last_start=max(match.start for row in rows for match in row),
    )
    if relations is not None and len(relations):
        wait_to_be_asked(found, named, relations, ids, embed, is_whole, relation_threshold)
    return found


def wait_to_be_asked(
    route: Route,
    named: list[list[Match | None]],
    relations: Relations,
    ids: torch.Tensor,
    embed: Callable[[torch.Tensor], torch.Tensor],
    is_whole: bool,
    threshold: float | None,
) -> None:
    """
    Let a subject alone put nothing in scope: its edits wait until the prompt has asked for what they are about.

    A question ends at its question mark, or where the prompt does. Of a text that may hold a part of an answer, only a
    question mark tells the end; where there is none, every token behind the subject may be it.
    """
    device = ids.device
    rivals = [[(match, *match.rivals) if match else () for match in row] for row in named]
    width = max(len(of_slot) for row in rivals for of_slot in row)

    def table(values: list[list[list[int]]], filler: int) -> torch.Tensor:
        return torch.tensor([[of + [filler] * (width - len(of)) for of in row] for row in values], device=device)

    edit = table([[[match.edit for match in of] for of in row] for row in rivals], -1)
    row_of_key = relations.rows_of(edit.to(relations.edit.device)).to(device)
    is_subject = [[match is not None and not match.is_prompt for match in row] for row in named]
    waits = torch.tensor(is_subject, device=device) & (row_of_key[:, :, 0] >= 0)
    if not waits.any():
        return
    # A subject that is named after the end of a sentence takes over; within a sentence, what is asked decides.
    is_stop = torch.isin(ids, relations.stops.to(ids))
    stops = is_stop.long().cumsum(1)
    first = torch.tensor([[match.first if match else 0 for match in row] for row in named], device=device)
    before, behind = stops.gather(1, (first - 1).clamp(min=0)), stops.gather(1, route.start)
    cuts = (before[:, None] > behind[:, :, None]) | ~waits[:, None]
    cuts &= (route.start[:, None] > route.start[:, :, None]) & (route.gates > 0)[:, None]
    route.end.copy_(torch.where(cuts, route.start[:, None], Route.ENDLESS).amin(-1))
    column = torch.arange(ids.shape[1], device=device)
    is_text = ids != -1
    within = (column >= route.start[..., None]) & (column < route.end[..., None]) & is_text[:, None]
    asked = within & torch.isin(ids, relations.marks.to(ids))[:, None]
    if is_whole:
        asked |= within & (column == torch.where(is_text, column, -1).amax(1)[:, None])[:, None]
    else:
        asked |= within & ~asked.any(-1, keepdim=True)
    columns = asked.any(1).any(0).nonzero().flatten()  # of few of them the scores are needed
    last = torch.tensor([[match.last if match else 0 for match in row] for row in named], device=device)
    words = words_of(embed(ids.clamp(min=0)).detach())
    at = columns.expand(*first.shape, -1).clamp(min=last[..., None])
    lowest = relations.threshold[row_of_key.clamp(min=0)].to(device)
    lowest = lowest if threshold is None else torch.full_like(lowest, threshold)
    route.candidates = Candidates(
        edits=edit,
        experts=table([[[match.expert for match in of] for of in row] for row in rivals], 0),
        keys=relations.keys[row_of_key.clamp(min=0)].float().to(device),
        # An edit without a key answers whatever is asked.
        threshold=lowest.masked_fill(row_of_key < 0, -torch.inf).masked_fill(edit < 0, torch.inf),
        score=torch.full_like(lowest, -torch.inf),
        named_at=route.start.clone(),
        columns=columns,
        asked=asked[:, :, columns],
        words=mean_of_sentences(relations.project(words).to(device), ids >= 0, is_stop, first, last, at),
        num_words=words.shape[-1],
    )
    route.start.masked_fill_(waits, Route.ENDLESS)
    route.last_start = ids.shape[1] - 1 if is_whole else Route.ENDLESS
