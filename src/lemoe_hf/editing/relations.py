"""Let an adapter learn, once for a base model, to tell what prompts ask for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.reference import reference_relations
from ..routing.context import RoutingContext
from ..routing.relations import Relations, features_of, words_of
from ..routing.router import counted, words_beside
from ..routing.text import Text
from ..routing.vocabulary import (
    CAPITAL,
    COLON,
    CONTINUES,
    HEADER,
    MARK,
    PRONOUN,
    PRONOUNS,
    SPECIAL,
    STOP,
    WORD,
    Vocabulary,
)
from .hooks import recorded
from .tokens import TokenizedEdit, columns, leading
from .wordings import TURNED_AWAY, Wordings, fit


logger = logging.get_logger(__name__)

VERSION = 7  # of what is kept; to be raised with every change to how it comes about


@torch.no_grad()
def prompt_features(
    root: nn.Module,
    context: RoutingContext,
    adapter_name: str,
    prompts: Sequence[list[int]],
    subjects: Sequence[tuple[int, int]],
    vocabulary: Vocabulary,
    pad: int,
) -> torch.Tensor:
    """
    Features of shape `(n, f)` of `n` prompts, for adapters from before words alone were read: of the words of each one's last
    sentence, without the subject, and of its last token in the base model.

    Args:
        root (`nn.Module`): The model, with its LEMoE layers.
        context ([`RoutingContext`]): Of that model.
        adapter_name (`str`): The adapter, whose place decides which layers are looked at.
        prompts (`Sequence[list[int]]`): Their tokens.
        subjects (`Sequence[tuple[int, int]]`): First and last column of the subject of each.
        vocabulary ([`Vocabulary`]): What the tokens are.
        pad (`int`): The padding token.
    """
    embedding, spoken = root.get_input_embeddings(), words_of_prompts(prompts, subjects, vocabulary)
    found: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    for rows, ids, mask, hidden in recorded(root, context, context.taps[adapter_name], prompts, pad):
        row = torch.arange(len(rows), device=ids.device)
        end = mask.sum(1) - 1
        at_end = features_of([states[row, end + states.shape[1] - ids.shape[1]] for states in hidden])
        for i, features in zip(rows, at_end, strict=True):
            words = words_of(embedding(torch.tensor(spoken[i], dtype=torch.long, device=ids.device)))
            found[i] = torch.cat([words.sum(0) / max(len(spoken[i]), 1), features])
    return torch.stack(found)


def words_of_prompts(
    prompts: Sequence[list[int]], subjects: Sequence[tuple[int, int]], vocabulary: Vocabulary
) -> list[list[int]]:
    """The tokens of each prompt's last sentence, without the subject."""
    return [
        words_beside(text_of(prompt, vocabulary), len(prompt) - 1, subject)
        for prompt, subject in zip(prompts, subjects, strict=True)
    ]


def text_of(tokens: Sequence[int], vocabulary: Vocabulary) -> Text:
    """A text that is a prompt from its first token to its last."""
    text = Text(ends={len(tokens) - 1}, prompt=len(tokens))
    text.read(tokens, range(len(tokens)), vocabulary)
    return text


def fit_relations(
    relations: Relations, vocabulary: Vocabulary, root: nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    """
    Fit on the package's own wordings, which takes seconds and no forward pass. The outcome is kept in a file of the Hugging
    Face cache (`HF_HOME`) for the next adapter of the same base model.
    """
    labelled = reference_relations()
    prompts = [tokenizer(each.text)["input_ids"] for each in labelled]
    subjects = [
        subject_columns(tokenizer, each.text, ids, each.subject) for each, ids in zip(labelled, prompts, strict=True)
    ]
    words = words_of_prompts(prompts, subjects, vocabulary)
    labels = [(each.relation, each.kind, each.text.endswith("?")) for each in labelled]
    wordings = Wordings.of(words, embed_by(root), *zip(*labels, strict=True))
    path = Path(constants.HF_HOME, "lemoe_hf", f"relations-{digest(wordings)}.safetensors")
    if path.exists():
        for name, tensor in load_file(path).items():
            setattr(relations, name, tensor.to(relations.mean.device))
        return
    relations.to(wordings.embedded.device)
    fit(relations, wordings)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.cpu().contiguous() for name, tensor in relations.named_buffers()}, part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        # The adapter holds it as well: only the next new one has to wait again.
        logger.warning(f"{path} cannot be written ({error}); the next new adapter learns the relations again.")


def learn_vocabulary(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Tell what every token is, by its text: which end a question, which any sentence, and with which a name goes on: those that
    begin a capitalised word behind another one, or go on with the word itself, be it not by the s of a genitive or a plural.
    """
    texts = [text.rstrip(" ") for text in tokenizer.batch_decode([[token] for token in range(len(tokenizer))])]
    special = set(tokenizer.all_special_ids)
    # By itself, a token of SentencePiece is decoded without the space before it.
    word = tokenizer(" a", add_special_tokens=False)["input_ids"][-1]
    length = len(tokenizer.decode([word]))
    behind = [text[length:] for text in tokenizer.batch_decode([[word, token] for token in range(len(tokenizer))])]
    reply = reply_of(tokenizer)
    names_speaker = {
        one
        for one, two in pairwise(reply)
        if one in special and two not in special and any(map(str.isalnum, texts[two]))
    }
    kinds = [
        MARK * text.endswith("?")
        | STOP * (text.endswith(("?", ".", "!", "\n")) or token in special)
        | SPECIAL * (token in special)
        | CONTINUES * goes_on(text_behind)
        | WORD * (token not in special and any(each.isalnum() or each == "\ufffd" for each in text))
        | COLON * text.endswith(":")
        | HEADER * (token in names_speaker)
        | CAPITAL * (text_behind[:1] == " " and text_behind[1:2].isupper())
        | PRONOUN * (text.strip().lower() in PRONOUNS)
        for token, (text, text_behind) in enumerate(zip(texts, behind, strict=True))
    ]
    device = vocabulary.kinds.device
    vocabulary.kinds = torch.tensor(kinds, dtype=torch.int16, device=device)
    vocabulary.reply = torch.tensor(reply, dtype=torch.int32, device=device)


def reply_of(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens between what a user says and the answer in the chat template; none without a template."""
    if tokenizer.chat_template is None:
        return []
    asked, answered = "QUESTION", "ANSWER"
    turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    between = text[text.rindex(asked) + len(asked) : text.rindex(answered)]
    return list(tokenizer(between, add_special_tokens=False)["input_ids"])


def goes_on(text: str) -> bool:
    """Whether a name goes on with a text right behind it, in a script that has capitals."""
    is_cased = text[:1].lower() != text[:1].upper()
    return text[:1] == " " and text[1:2].isupper() or text != "s" and (is_cased or text[:1].isdigit())


def relation_keys(
    relations: Relations,
    vocabulary: Vocabulary,
    root: nn.Module,
    context: RoutingContext,
    adapter_name: str,
    items: Sequence[TokenizedEdit],
    pad: int,
) -> torch.Tensor:
    """What edits are about, as unit vectors of shape `(e, k)`."""
    prompts, subjects = [item.prompt for item in items], [(item.first, item.last) for item in items]
    if relations.is_of_words:
        words = words_of_prompts(prompts, subjects, vocabulary)
        return relations.embed_words(*counted(words, embed_by(root)))
    return relations.embed(prompt_features(root, context, adapter_name, prompts, subjects, vocabulary, pad))


def subject_columns(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], subject: str) -> tuple[int, int]:
    """First and last column of a subject in the tokens of a text."""
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    start, lead = text.rindex(subject), leading(ids, plain)
    first, last = columns(tokenizer, text, plain, start, start + len(subject))
    return lead + first, lead + last


def embed_by(root: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """The input embeddings of tokens in a model, wherever it is."""
    embedding = root.get_input_embeddings()
    device = next(embedding.parameters()).device
    return lambda tokens: embedding(tokens.to(device)).detach()


def digest(wordings: Wordings) -> str:
    """Of all that decides the outcome."""
    found = hashlib.sha256(repr((VERSION, TURNED_AWAY)).encode())
    counts = wordings.counts.to_sparse()
    labels = (wordings.relation, wordings.kind, wordings.is_question)
    for tensor in (wordings.embedded, counts.indices(), counts.values(), *labels):
        found.update(str(tensor.dtype).encode() + tensor.double().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
