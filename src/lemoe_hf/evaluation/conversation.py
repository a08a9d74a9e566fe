"""Does an edit act where a conversation asks for it, and nowhere else in it?"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import torch
from jinja2 import TemplateError
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..generation import continuations, greedy, padding_of
from .dialogues import Dialogue, Message, dialogues
from .digest import digest, digest_of_base, digest_of_model, digest_of_tokenizer
from .journal import Journal
from .metrics import agreement, means, starts_with


# Greedy tokens of an answer that are compared with the base model's.
FIRST_TOKENS = 16

# What a template puts around an answer is found around this one.
ANSWER = "~answer~"

# Without a template, and in a document.
PLAIN = {"system": "{}\n\n", "user": "Question: {}\nAnswer:", "assistant": " {}\n\n", "document": "{}"}


class Judged(NamedTuple):
    """A dialogue, what came, what was to come, whether it did, and how much of it where that is the base model's answer."""

    dialogue: Dialogue
    answer: list[int]
    expected: str
    is_right: bool
    kept: float | None


class Conversation:
    """
    The answers to the last turns of dialogues, and whether a conversation on one cache is one that is sent again.

    Args:
        batch_size (`int`): Dialogues at once.
        among (`Sequence` of [`Edit`]): All edits of the model.
        base ([`Journal`]), edited ([`Journal`]): Where the answers of the base model, and of edited ones, are kept.
    """

    def __init__(self, batch_size: int, among: Sequence[Edit], base: Journal, edited: Journal):
        self.batch_size, self.among, self.base, self.edited = batch_size, among, base, edited
        # What an edit's dialogues are hangs on the other edits as well.
        self.name = f"conversation among {digest(list(among))}"

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit]
    ) -> list[dict[str, float]]:
        of_edits = dialogues(edits, self.among)
        judged = iter(self.judged(model, tokenizer, [each for of_edit in of_edits for each in of_edit]))
        scores = []
        for of_edit in of_edits:
            found = list(islice(judged, len(of_edit)))
            of_turns = self._turns(model, tokenizer, found)
            scores.append(means([*map(score_of, found), of_turns]))
        return scores

    def judged(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, of_all: Sequence[Dialogue]
    ) -> Iterator[Judged]:
        """Of every dialogue what came of it."""
        asked = [each for each in of_all if each.target is not None]
        others = [each for each in of_all if each.target is None]
        bounds = [len(tokenizer(each.target, add_special_tokens=False)["input_ids"]) + 3 for each in asked]
        of_model, of_base = digest_of_model(model), digest_of_base(model)
        answered = iter(self._answers(self.edited, of_model, model, tokenizer, asked, bounds))
        # By themselves: the last bits hang on what is in a batch, and the base model answers only these.
        bounds = [FIRST_TOKENS] * len(others)
        edited = iter(self._answers(self.edited, of_model, model, tokenizer, others, bounds))
        with model.disable_adapter():
            base = iter(self._answers(self.base, of_base, model, tokenizer, others, bounds))
        for dialogue in of_all:
            if dialogue.target is not None:
                answer = next(answered)
                is_right = starts_with(str(tokenizer.decode(answer)), dialogue.target)
                yield Judged(dialogue, answer, dialogue.target, is_right, None)
            else:
                answer, expected = next(edited), next(base)
                kept = agreement(expected, answer, FIRST_TOKENS)
                yield Judged(dialogue, answer, str(tokenizer.decode(expected)), answer == expected, kept)

    def _answers(
        self,
        journal: Journal,
        of_model: str,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Dialogue],
        bounds: Sequence[int],
    ) -> list[list[int]]:
        """Those already in the journal are not computed again; the others are written to it after every batch."""
        ids = [tokens_of(tokenizer, row) for row in rows]
        of_both = digest(of_model, digest_of_tokenizer(tokenizer))
        keys = [digest(of_both, *each) for each in zip(ids, bounds, strict=True)]
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), bounds[i]))
        for first in range(0, len(order), self.batch_size):
            batch = order[first : first + self.batch_size]
            if any(keys[i] not in journal for i in batch):
                found = continuations(model, tokenizer, [ids[i] for i in batch], [bounds[i] for i in batch])
                about = [f"{rows[i].kind}: {rows[i].messages[-1][1]}" for i in batch]
                journal.write(zip([keys[i] for i in batch], about, found, strict=True))
        return [journal[key] for key in keys]

    def _turns(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, found: Sequence[Judged]
    ) -> dict[str, float]:
        """Of one of an edit's dialogues of two turns: on a cache or sent again, in a batch or alone."""
        of_two = [
            each for each in found if [role for role, _ in each.dialogue.messages] == ["user", "assistant", "user"]
        ]
        dialogue, answer, *_ = random.Random(found[0].dialogue.messages[-1][1]).choice(of_two)
        key = digest(digest_of_model(model), digest_of_tokenizer(tokenizer), "turns", dialogue, answer)
        if key not in self.edited:
            bound = FIRST_TOKENS if dialogue.target is None else len(answer)
            (alone,) = continuations(model, tokenizer, [tokens_of(tokenizer, dialogue)], bound)
            same = {
                "conversation_cache": float(is_continued(model, tokenizer, dialogue)),
                "conversation_alone": float(alone == answer),
            }
            self.edited.write([(key, f"turns: {dialogue.kind}", same)])
        return self.edited[key]


def score_of(judged: Judged) -> dict[str, float]:
    is_right, kind = float(judged.is_right), judged.dialogue.kind
    if judged.kept is None:
        return {f"conversation_{kind}": is_right, "conversation_target": is_right, "conversation": is_right}
    of_base = {"conversation_base": is_right, "conversation_kept": judged.kept}
    return {f"conversation_{kind}": is_right, **of_base, "conversation": is_right}


@torch.no_grad()
def is_continued(model: PeftModel, tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> bool:
    """Whether a second turn, put on the cache of the first and its answer, is answered as the whole sent again."""
    first, _, second = dialogue.messages
    before, behind = rendered(tokenizer, (first, ("assistant", ANSWER), second)).split(ANSWER)
    ids = tokenizer(before, add_special_tokens=is_plain(tokenizer, dialogue.messages))["input_ids"]
    device = model.get_input_embeddings().weight.device
    with greedy(model, padding_of(tokenizer)):

        def generate(tokens: list[int], cache: object = None) -> tuple[list[int], object]:
            output = model.generate(
                torch.tensor([tokens], device=device),
                max_new_tokens=FIRST_TOKENS,
                past_key_values=cache,
                return_dict_in_generate=True,
            )
            return output.sequences[0, len(tokens) :].tolist(), output.past_key_values

        answer, cache = generate(ids)
        # The mark that ends an answer is in no cache, and is a part of what the template puts behind.
        answer = [token for token in answer if token not in tokenizer.all_special_ids]
        whole = [*ids, *answer, *tokenizer(behind, add_special_tokens=False)["input_ids"]]
        return generate(whole, cache)[0] == generate(whole)[0]


def is_plain(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> bool:
    """Whether a dialogue is no chat to the model."""
    return tokenizer.chat_template is None or messages[0][0] == "document"


def tokens_of(tokenizer: PreTrainedTokenizerBase, dialogue: Dialogue) -> list[int]:
    """A template writes special tokens by itself."""
    text = rendered(tokenizer, dialogue.messages)
    return list(tokenizer(text, add_special_tokens=is_plain(tokenizer, dialogue.messages))["input_ids"])


def rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> str:
    if is_plain(tokenizer, messages):
        return "".join(PLAIN[role].replace("{}", text) for role, text in messages)
    turns = [{"role": role, "content": text} for role, text in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError:  # Some templates know no system prompts; there it is said first.
        (_, system), (role, text), *others = messages
        return rendered(tokenizer, ((role, f"{system}\n\n{text}"), *others))
