"""Is an edit's own prompt answered where it does not stand alone?"""

from __future__ import annotations

import random
from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..data.reference import unrelated_sentences
from ..generation import answers
from .metrics import starts_with


# Tokens that stand before the prompt, at least.
PREFIX, DOCUMENT = 50, 500


class Contexts:
    """
    Free answers to prompts in the chat template, behind a few unrelated sentences, and at the end of a long text of them.

    The sentences come with the package, for this alone; the draw depends on nothing but the edit's prompt.

    Args:
        batch_size (`int`): Prompts at once.
    """

    name = "contexts"

    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit]
    ) -> list[dict[str, float]]:
        texts = {
            "prefix": [unrelated(tokenizer, PREFIX, edit.prompt) + edit.prompt.rstrip() for edit in edits],
            "document": [unrelated(tokenizer, DOCUMENT, edit.prompt) + edit.prompt.rstrip() for edit in edits],
        }
        if tokenizer.chat_template is not None:
            texts = {"chat": [in_chat(tokenizer, edit.prompt.rstrip()) for edit in edits]} | texts
        targets = [edit.target_new.strip() for edit in edits]
        # Behind a template the target begins without a space, and may have a token more.
        bounds = [len(tokenizer(target, add_special_tokens=False)["input_ids"]) + 3 for target in targets]
        scores: list[dict[str, float]] = [{} for _ in edits]
        for name, prompts in texts.items():
            found = answers(model, tokenizer, prompts, bounds, self.batch_size)
            for score, text, target in zip(scores, found, targets, strict=True):
                score[f"free_reliability_{name}"] = float(starts_with(text, target))
        return scores


def in_chat(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    turn = [{"role": "user", "content": prompt}]
    text = str(tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True))
    # The template may begin with what the tokenizer puts before every text by itself.
    return text.removeprefix(str(tokenizer.decode(tokenizer("")["input_ids"])))


def unrelated(tokenizer: PreTrainedTokenizerBase, num_tokens: int, seed: str) -> str:
    """Sentences that no edit is about, of at least so many tokens."""
    draw, text = random.Random(seed), ""
    while len(tokenizer(text)["input_ids"]) < num_tokens:
        text += draw.choice(unrelated_sentences()) + " "
    return text
