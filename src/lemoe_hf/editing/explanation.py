"""Why a prompt is answered as it is: for people to read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rapidfuzz import fuzz, process

from ..data.edit import check_text, key_of
from ..generation import evaluating, pad_right
from ..routing.anchors import Match
from ..routing.text import Question, Text
from .edited import EditedModel


@dataclass(frozen=True)
class Explanation:
    """
    Why a prompt is answered as it is.

    Args:
        prompt (`str`): The prompt.
        entry (`dict`, *optional*): The ledger's entry of the edit that answers; `None` where the base model does, or
            an expert that a router has chosen for a prompt of no edit of its own.
        expert (`int`, *optional*): The expert that answers; `None` where the base model does.
        score (`float`): Share of the name's letters that are right; of an anchor's tokens that were found in a row.
        threshold (`float`, *optional*): Share at which that anchor is found; `None` where no anchor comes near.
        matched (`str`): The part of the prompt that was recognised.
        name (`str`, *optional*): The name of the edit that it was recognised as, where that has other letters: the part of the
            prompt has one wrong.
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
    name: str | None = None

    @property
    def deferred(self) -> bool:
        return self.expert is None

    def __str__(self) -> str:
        asks, called = "", f" ({self.name!r})" if self.name else ""
        if self.relation_score is not None:
            asks = f"asks for what it is about by {self.relation_score:.1f}, threshold {self.relation_threshold:.1f}"
        if self.deferred and self.matched:
            why = f"the prompt {asks}" if asks else "is part of a longer name here"
            return f"{self.prompt!r}: the base model answers ({self.matched!r}{called} was edited, but {why})."
        if self.deferred:
            near = (
                "nothing like it was edited"
                if self.threshold is None
                else f"the nearest name scores {self.score:.2f}, below its threshold of {self.threshold:.2f}"
            )
            return f"{self.prompt!r}: the base model answers ({near})."
        if self.entry is None:
            return f"{self.prompt!r}: expert {self.expert} answers, whose key is nearest."
        edit = self.entry.get("edit")
        what = f"{edit['prompt']!r} -> {edit['target_new']!r}" if edit else "its texts were not shared"
        return (
            f"{self.prompt!r}: edit {self.entry['id']} answers ({what}), expert "
            f"{self.expert}, for {self.matched!r}{called}: score {self.score:.2f}, threshold {self.threshold:.2f}"
            + (f"; {asks}." if asks else ".")
        )


def explain(editor: EditedModel, prompt: str) -> Explanation:
    """
    Which edit answers a prompt, found by what and how surely; or that the base model does.

    Raises:
        TypeError: If the prompt is no text.
        ValueError: If the adapter is not active, or adapters are disabled: then no edit answers anything.
    """
    if not isinstance(prompt, str):
        raise TypeError(f"One prompt is explained at a time, and it is a text; got {prompt!r:.100}.")
    check_text("A prompt to explain", prompt)
    editor.check_active()
    config, anchors = editor.config, editor.tuner.layers_of(editor.adapter_name)[0].anchors(editor.adapter_name)
    ids = editor.tokenizer(prompt)["input_ids"]
    ((text, questions),) = looked_at(editor, [ids])
    expert = next(reversed(acting(text)), None)
    asked: dict[int, tuple[Match, float, float]] = {}
    for (
        question
    ) in questions:  # of several, such as a question mark and the end of the prompt, that which asks most surely
        for option, score in zip(question.options, question.scores, strict=True):
            known = asked.get(option.edit)
            if known is None or score - option.threshold > known[1] - known[2]:
                asked[option.edit] = (option.name, score, option.threshold)
    found = text.found or anchors.find(torch.tensor([ids]), config.threshold)[0]
    found = found + [each.own for each in questions if each.own is not None]
    matches = [match for match in found if match.expert == expert]
    if text.acting is not None:  # experts may hold several edits
        matches = [match for match in matches if match.edit == text.acting.edit]
    if not matches and asked:  # of those that are not asked for, the one that comes nearest
        nearest = max(asked, key=lambda edit: asked[edit][1] - asked[edit][2])
        matches = [match for match in found if match.edit == nearest]
    if not matches:
        near = max(found or anchors.find(torch.tensor([ids]), 1e-6)[0], key=lambda match: match.score, default=None)
        if not found:
            score, threshold = nearest_name(editor, prompt)
            if threshold is not None and (near is None or score >= near.score):
                return Explanation(prompt, None, expert, score, config.threshold or threshold, "")
        if near is None:
            return Explanation(prompt, None, expert, 0.0, None, "")
        threshold = config.threshold or near.threshold
        words = editor.tokenizer.decode(ids[near.first : near.last + 1]) if found else ""
        return Explanation(prompt, None, expert, near.score, threshold, words)
    match = max(matches, key=lambda match: (match.is_prompt, match.score, match.last))
    entry = next(entry for entry in editor.edits() if entry["id"] == match.edit)
    entry = entry if entry["expert"] == expert else None
    words = editor.tokenizer.decode(ids[match.first : match.last + 1])
    threshold = match.threshold if match.is_prompt else config.threshold or match.threshold
    relation = (None, None)
    if match.edit in asked and not match.is_prompt and asked[match.edit][2] > -torch.inf:
        relation = asked[match.edit][1:]
    name = name_of(editor, match, words)
    return Explanation(prompt, entry, expert, match.score, threshold, words, *relation, name)


def nearest_name(editor: EditedModel, prompt: str) -> tuple[float, float | None]:
    """The largest share of a name's letters that a prompt holds in a row, nearly, and at which that name would be found."""
    names = [name for name in editor._lead.names(editor.adapter_name) if not name.is_prompt]
    text, best, threshold = key_of(prompt), 0.0, None
    for _, score, row in process.extract(text, [name.key for name in names], scorer=fuzz.partial_ratio, limit=10):
        length = len(names[row].key)
        score *= min(1.0, len(text) / length) / 100
        if score > best:
            best, threshold = score, 1 - names[row].is_near / length
    return best, threshold


def name_of(editor: EditedModel, match: Match, words: str) -> str | None:
    """The name of an edit that was found with a letter wrong, as its ledger has it."""
    if not match.name or key_of(words) == key_of(match.name):
        return None
    edit = next((entry.get("edit") for entry in editor.edits() if entry["id"] == match.edit), None)
    told = [*(edit or {}).get("aliases", ()), (edit or {}).get("subject", "")]
    return next((text for text in told if key_of(text) == key_of(match.name)), match.name)


@torch.no_grad()
def looked_at(editor: EditedModel, prompts: Sequence[list[int]]) -> list[tuple[Text, list[Question]]]:
    """The texts of a batch of prompts, given as tokens, when they have passed the model, and what each was seen to ask."""
    root, context, name = editor.root, editor.tuner.context, editor.adapter_name
    device = root.get_input_embeddings().weight.device
    # Padded on the right: a plain forward pass counts positions from the first column on.
    ids, mask = pad_right(prompts, editor.tokenizer.pad_token_id, device)
    with evaluating(root), context.generation(root, (ids,), {"attention_mask": mask}) as frame:
        root(input_ids=ids, attention_mask=mask, use_cache=False)
    texts = frame.kept.texts.get(name, [Text() for _ in prompts])
    of_pass = frame.last.passes.get(name) if frame.last is not None else None
    questions = [asking.questions for asking in of_pass.askings] if of_pass is not None else [[] for _ in texts]
    return list(zip(texts, questions, strict=True))


def acting(text: Text) -> list[int]:
    """The experts that act when a prompt is over."""
    if text.mixed is not None and text.mixed.nearest is not None:
        return [text.mixed.nearest] if any(text.mixed.gates) else []
    if text.mixed is not None:
        return [expert for expert, gate in zip(text.mixed.experts, text.mixed.gates, strict=True) if gate > 0]
    return [] if text.acting is None else [text.acting.expert]
