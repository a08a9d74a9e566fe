"""Let an adapter learn, once for a base model, to tell what prompts ask for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.reference import reference_relations
from ..routing.context import RoutingContext, first_tensor
from ..routing.relations import TURNED_AWAY, LabelledPrompts, Relations, features_of
from .activations import batch_of


logger = logging.get_logger(__name__)

PROMPTS_AT_ONCE = 64
VERSION = 1  # of what is kept; to be raised with every change to how it comes about


class Enough(Exception):
    """The last layer that is looked at has been reached; what lies above it need not run."""


@torch.no_grad()
def prompt_features(
    root: nn.Module, context: RoutingContext, adapter_name: str, prompts: Sequence[list[int]], pad: int
) -> torch.Tensor:
    """
    Features of shape `(n, f)` of the last token of each of `n` prompts, from the base model.

    Args:
        root (`nn.Module`): The model, with its LEMoE layers.
        context ([`RoutingContext`]): Of that model.
        adapter_name (`str`): The adapter, whose place decides which layers are looked at.
        prompts (`Sequence[list[int]]`): Their tokens.
        pad (`int`): The padding token.
    """
    taps, device = context.taps[adapter_name], root.get_input_embeddings().weight.device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    for first in range(0, len(order), PROMPTS_AT_ONCE):
        rows = order[first : first + PROMPTS_AT_ONCE]
        ids, mask = batch_of([prompts[i] for i in rows], pad, device)
        last = mask.sum(1) - 1
        hidden: list[torch.Tensor] = []

        def record(block: nn.Module, args: tuple, kwargs: dict, last=last, hidden=hidden) -> None:
            states = first_tensor(args, kwargs)
            hidden.append(states[torch.arange(len(states), device=states.device), last.to(states.device)])
            if block is taps[-1]:
                raise Enough

        with ExitStack() as stack:
            stack.enter_context(context.pinned({}))
            for block in taps:
                stack.callback(block.register_forward_pre_hook(record, with_kwargs=True).remove)
            with suppress(Enough):
                root(input_ids=ids, attention_mask=mask, use_cache=False)
        for i, features in zip(rows, features_of([states.to(device) for states in hidden]), strict=True):
            found[i] = features
    return torch.stack(found)


def fit_relations(
    relations: Relations,
    root: nn.Module,
    context: RoutingContext,
    adapter_name: str,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """
    Fit on the package's own questions.

    That takes a forward pass over six thousand short prompts, so that the outcome is kept in a file of the Hugging Face
    cache (`HF_HOME`) for the next adapter of the same base model.
    """
    labelled = reference_relations()
    prompts = [tokenizer(text)["input_ids"] for _, _, text in labelled]
    path = Path(
        constants.HF_HOME, "lemoe_hf", f"relations-{digest(root, context.taps[adapter_name], prompts)}.safetensors"
    )
    if path.exists():
        for name, tensor in load_file(path).items():
            setattr(relations, name, tensor.to(relations.mean.device))
        return
    is_question = [text.endswith("?") for _, _, text in labelled]
    features = prompt_features(root, context, adapter_name, prompts, tokenizer.pad_token_id)
    relation, kind, _ = zip(*labelled, strict=True)
    labels = [torch.tensor(values, device=features.device) for values in (relation, kind, is_question)]
    relations.to(features.device)
    relations.fit(LabelledPrompts(features, *labels))
    texts = [text.rstrip(" ") for text in tokenizer.batch_decode([[token] for token in range(len(tokenizer))])]
    for name, ends in (("marks", ("?",)), ("stops", ("?", ".", "!", "\n"))):
        tokens = [token for token, text in enumerate(texts) if text.endswith(ends)]
        setattr(relations, name, torch.tensor(tokens, dtype=torch.int32, device=features.device))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.cpu().contiguous() for name, tensor in relations.named_buffers()}, part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        # The adapter holds it as well: only the next new one has to wait again.
        logger.warning(f"{path} cannot be written ({error}); the next new adapter learns the relations again.")


def digest(root: nn.Module, taps: list[nn.Module], prompts: list[list[int]]) -> str:
    """Of all that decides the outcome: the prompts' tokens, and a sample of the weights below the last layer looked at."""
    found = hashlib.sha256(repr((VERSION, TURNED_AWAY, prompts)).encode())
    for module in (root.get_input_embeddings(), *taps):
        weight = next(module.parameters()).detach().flatten()
        found.update(str(weight.dtype).encode() + weight[:: len(weight) // 4096 + 1].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
