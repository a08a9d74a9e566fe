"""Whether a tokenizer is the one that an adapter's edits were made with."""

from __future__ import annotations

import hashlib
import warnings

import torch
from transformers import PreTrainedTokenizerBase

from ..tuners.stamp import Stamp


def tokens_of(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, str]]:
    """All tokens, by their numbers."""
    return sorted((number, token) for token, number in tokenizer.get_vocab().items())


def digest_of(tokens: list[tuple[int, str]]) -> torch.Tensor:
    return torch.tensor(list(hashlib.sha256(repr(tokens).encode()).digest()), dtype=torch.uint8)


def note_tokenizer(tokenizer: PreTrainedTokenizerBase, stamp: Stamp) -> None:
    """Keep the digest of the tokenizer with which the first edit is made."""
    if not bool(stamp.vocabulary.any()):
        tokens, device = tokens_of(tokenizer), stamp.vocabulary.device
        stamp.vocabulary = digest_of(tokens).to(device)
        stamp.num_tokens = stamp.num_tokens.new_tensor([tokens[-1][0] + 1])


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, stamp: Stamp) -> None:
    """
    Warns of tokens that have come in since: texts that hold them are no longer cut as they were.

    Raises:
        ValueError: If a token is another than when the edits were made. Adapters of format 0 do not tell.
    """
    if stamp.vocabulary.device.type == "meta" or not bool(stamp.vocabulary.any()):
        return
    tokens = tokens_of(tokenizer)
    known = [each for each in tokens if each[0] < int(stamp.num_tokens)]
    if not torch.equal(digest_of(known), stamp.vocabulary.cpu()):
        raise ValueError(
            f"The edits of this adapter were made with another tokenizer: {type(tokenizer).__name__} has other tokens under "
            f"the same numbers, and no prompt would be found again. Pass the tokenizer of the model that they were made for."
        )
    if len(known) < len(tokens):
        new = [token for number, token in tokens[len(known) :]]
        warnings.warn(
            f"The tokenizer has {len(new)} tokens more than when the edits were made ({', '.join(map(repr, new[:5]))}...): "
            f"edits whose prompts hold them are not found any more.",
            stacklevel=3,
        )
