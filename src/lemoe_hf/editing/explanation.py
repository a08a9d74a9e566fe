"""Why a prompt is answered as it is: for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..generation import evaluating, pad_right
from ..routing.route import Route
from ..routing.scope import in_scope


if TYPE_CHECKING:
    from .editor import LifelongEditor


@dataclass(frozen=True)
class Explanation:
    """
    Why a prompt is answered as it is.

    Args:
        prompt (`str`): The prompt.
        entry (`dict`, *optional*): The ledger's entry of the edit that answers; `None` where the base model does, or
            an expert that a router has chosen for a prompt of no edit of its own.
        expert (`int`, *optional*): The expert that answers; `None` where the base model does.
        score (`float`): Share of the best anchor's tokens found in a row.
        threshold (`float`, *optional*): Share at which that anchor is found; `None` where no anchor comes near.
        matched (`str`): The part of the prompt that was recognised.
        relation_score (`float`, *optional*):
            How surely the prompt asks for what the edit is about, in standard deviations; `None` where that was not
            looked at, since the prompt is the edit's own, the config does not ask for it, or the subject begins a longer
            name.
        relation_threshold (`float`, *optional*): Score from which on it does.
    """

    prompt: str
    entry: dict | None
    expert: int | None
    score: float
    threshold: float | None
    matched: str
    relation_score: float | None = None
    relation_threshold: float | None = None

    @property
    def deferred(self) -> bool:
        return self.expert is None

    def __str__(self) -> str:
        asks = ""
        if self.relation_score is not None:
            asks = f"asks for what it is about by {self.relation_score:.1f}, threshold {self.relation_threshold:.1f}"
        if self.deferred and self.matched:
            why = f"the prompt {asks}" if asks else "begins a longer name here"
            return f"{self.prompt!r}: the base model answers ({self.matched!r} was edited, but {why})."
        if self.deferred:
            near = (
                "nothing like it was edited"
                if self.threshold is None
                else f"the nearest anchor scores {self.score:.2f}, below its threshold of {self.threshold:.2f}"
            )
            return f"{self.prompt!r}: the base model answers ({near})."
        if self.entry is None:
            return f"{self.prompt!r}: expert {self.expert} answers, whose key is nearest."
        edit = self.entry.get("edit")
        what = f"{edit['prompt']!r} -> {edit['target_new']!r}" if edit else "its texts were not shared"
        return (
            f"{self.prompt!r}: edit {self.entry['id']} answers ({what}), expert "
            f"{self.expert}, for {self.matched!r}: score {self.score:.2f}, threshold {self.threshold:.2f}"
            + (f"; {asks}." if asks else ".")
        )


def explain(editor: LifelongEditor, prompt: str) -> Explanation:
    """
    Which edit answers a prompt, found by what and how surely; or that the base model does.

    Raises:
        TypeError: If the prompt is no text.
        ValueError: If the adapter is not active, or adapters are disabled: then no edit answers anything.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"One prompt is explained at a time, and it is a text; got {prompt!r:.100}.")
    editor.check_active()
    config, lead = editor.config, editor.tuner.lemoe_layers(editor.adapter_name)[0]
    anchors = lead.lemoe_anchors[editor.adapter_name]
    ids = editor.tokenizer(prompt)["input_ids"]
    continuing = lead.lemoe_relations[editor.adapter_name].continuing if config.asks_relation else None
    found = in_scope(anchors, torch.tensor([ids]), config.threshold, continuing)[0]
    longer = [] if found else in_scope(anchors, torch.tensor([ids]), config.threshold)[0]
    if longer:
        text = editor.tokenizer.decode(ids[longer[-1].first : longer[-1].last + 1])
        return Explanation(prompt, None, None, longer[-1].score, config.threshold or longer[-1].threshold, text)
    if not found:
        expert = next(reversed(acting(routed(editor, [ids]))), None) if config.routing == "kv_anchor" else None
        near = max(anchors.find(torch.tensor([ids]), 1e-6)[0], key=lambda match: match.score, default=None)
        if near is None:
            return Explanation(prompt, None, expert, 0.0, None, "")
        return Explanation(prompt, None, expert, near.score, config.threshold or near.threshold, "")
    route = routed(editor, [ids])
    expert = next(reversed(acting(route)), None)
    asked = asked_for(route)
    matches = [each for match in reversed(found) for each in (match, *match.rivals)]
    match = next((match for match in matches if match.expert == expert), None)
    if match is None:  # of those that are not asked for, the one that comes nearest
        match = max(matches, key=lambda match: asked.get(match.edit, (-torch.inf, 0.0))[0])
    entry = next(entry for entry in editor.edits() if entry["id"] == match.edit)
    text = editor.tokenizer.decode(ids[match.first : match.last + 1])
    entry = entry if entry["expert"] == expert else None
    relation = asked.get(match.edit, (None, None))
    threshold = match.threshold if match.is_prompt else config.threshold or match.threshold
    return Explanation(prompt, entry, expert, match.score, threshold, text, *relation)


@torch.no_grad()
def routed(editor: LifelongEditor, prompts: Sequence[list[int]]) -> Route | None:
    """
    The route of a batch of prompts, given as tokens, when they have passed the model; `None` where all are deferred.
    """
    root, context = editor.root, editor.tuner.context
    device = root.get_input_embeddings().weight.device
    # Padded on the right: a plain forward pass counts positions from the first column on.
    ids, mask = pad_right(prompts, editor.tokenizer.pad_token_id, device)
    with evaluating(root), context.generation(root, (ids,), {"attention_mask": mask}):
        root(input_ids=ids, attention_mask=mask, use_cache=False)
        return context.pinned_routes.get(editor.adapter_name)


def acting(route: Route | None, row: int = 0) -> list[int]:
    """The experts that act when the prompt of a row is over."""
    if route is None:
        return []
    return route.final.experts[row, route.final.gates[row] > 0].tolist()


def asked_for(route: Route | None) -> dict[int, tuple[float, float]]:
    """How surely the one prompt of a route asks for what edits of its subjects are about, and the threshold of each."""
    if route is None or route.candidates is None:
        return {}
    columns = (route.candidates.edits, route.candidates.score, route.candidates.threshold)
    rows = zip(*(tensor[0].flatten().tolist() for tensor in columns), strict=True)
    return {edit: (score, threshold) for edit, score, threshold in rows if edit >= 0 and score > -torch.inf}
