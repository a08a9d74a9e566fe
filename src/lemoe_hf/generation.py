"""Answer many prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from .data.edit import check_text


def pad_left(sequences: Sequence[Sequence[int]], pad: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Left-padded `input_ids` and `attention_mask` of shape `(b, t)`."""
    width = max(map(len, sequences))
    ids = [[pad] * (width - len(sequence)) + list(sequence) for sequence in sequences]
    mask = [[0] * (width - len(sequence)) + [1] * len(sequence) for sequence in sequences]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def pad_right(sequences: Sequence[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded tokens and their mask, both of shape `(b, t)`."""
    width = max(map(len, sequences))
    ids = torch.tensor([sequence + [pad] * (width - len(sequence)) for sequence in sequences], device=device)
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences], device=device)
    return ids, mask


def padding_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """
    The padding token.

    Raises:
        ValueError: If the tokenizer has none.
    """
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no padding token. Set one first, for example "
            f"`tokenizer.pad_token = tokenizer.eos_token`."
        )
    return tokenizer.pad_token_id


@contextmanager
def evaluating(model: nn.Module):
    """
    Put a model in evaluation mode, and every module back into its own: a `PeftModel` and its base may differ. Modules
    that came in meanwhile, such as new experts, get the mode of the model.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module in model.modules():
            module.training = modes.get(module, modes[model])


@contextmanager
def greedy(model: nn.Module, pad: int):
    """
    Inside, `generate` is greedy and no more: what a model brings along, such as a penalty on tokens of the prompt or
    several beams, changes which answer comes out.
    """
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    brought = model.generation_config
    plain = GenerationConfig(
        do_sample=False,
        bos_token_id=brought.bos_token_id,
        eos_token_id=brought.eos_token_id,
        decoder_start_token_id=brought.decoder_start_token_id,
        pad_token_id=pad,
    )
    before = {owner: owner.generation_config for owner in (base, model) if "generation_config" in vars(owner)}
    for owner in before:
        owner.generation_config = plain
    try:
        yield
    finally:
        for owner, own in before.items():
            owner.generation_config = own


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: Sequence[int] | int = 16,
    batch_size: int = 32,
) -> list[str]:
    """
    Greedy answers to prompts, in batches of similar length.

    Args:
        max_new_tokens (`Sequence[int]` or `int`): Upper bound of each answer, or of all.

    Raises:
        ValueError: If the tokenizer has no padding token, or a prompt has no tokens.
    """
    for prompt in prompts:
        check_text("A prompt", prompt)
    ids = tokenizer(list(prompts))["input_ids"] if prompts else []
    if not all(ids):
        raise ValueError(
            f"The prompt {prompts[[bool(each) for each in ids].index(False)]!r} has no tokens. Ask something."
        )
    return [tokenizer.decode(tokens) for tokens in continuations(model, tokenizer, ids, max_new_tokens, batch_size)]


@torch.no_grad()
def continuations(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: Sequence[list[int]],
    max_new_tokens: Sequence[int] | int = 16,
    batch_size: int = 32,
) -> list[list[int]]:
    """As `answers`, from tokens to tokens, without special ones: for what a chat template has rendered."""
    pad = padding_of(tokenizer)
    bounds = [max_new_tokens] * len(ids) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    device = model.get_input_embeddings().weight.device
    special = set(tokenizer.all_special_ids)
    found: list[list[int]] = [[] for _ in ids]
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), bounds[i]))
    with evaluating(model), greedy(model, pad):
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            batch = pad_left([ids[i] for i in rows], pad, device)
            output = model.generate(**batch, max_new_tokens=max(bounds[i] for i in rows))
            for i, tokens in zip(rows, output[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                found[i] = [token for token in tokens[: bounds[i]] if token not in special]
    return found
