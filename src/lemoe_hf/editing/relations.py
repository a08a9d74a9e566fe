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
from ..routing.relations import TURNED_AWAY, LabelledPrompts, Relations, features_of, mean_of_sentences, words_of
from .activations import batch_of
from .tokens import columns, leading


logger = logging.get_logger(__name__)

PROMPTS_AT_ONCE = 64
VERSION = 3  # of what is kept; to be raised with every change to how it comes about


class Enough(Exception):
    """The last layer that is looked at has been reached; what lies above it need not run."""


@torch.no_grad()
def prompt_features(
    root: nn.Module,
    context: RoutingContext,
    adapter_name: str,
    prompts: Sequence[list[int]],
    subjects: Sequence[tuple[int, int]],
    stops: torch.Tensor,
    pad: int,
) -> torch.Tensor:
    """
    Features of shape `(n, f)` of `n` prompts, from the base model: of the words of each one's last sentence, without the
    subject, and of its last token.

    Args:
        root (`nn.Module`): The model, with its LEMoE layers.
        context ([`RoutingContext`]): Of that model.
        adapter_name (`str`): The adapter, whose place decides which layers are looked at.
        prompts (`Sequence[list[int]]`): Their tokens.
        subjects (`Sequence[tuple[int, int]]`): First and last column of the subject of each.
        stops (`torch.Tensor`): Tokens that end a sentence.
        pad (`int`): The padding token.
    """
    taps, embedding = context.taps[adapter_name], root.get_input_embeddings()
    device = embedding.weight.device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    found: list[torch.Tensor] = [torch.empty(0)] * len(prompts)
    for start in range(0, len(order), PROMPTS_AT_ONCE):
        rows = order[start : start + PROMPTS_AT_ONCE]
        ids, mask = batch_of([prompts[i] for i in rows], pad, device)
        end = mask.sum(1) - 1
        hidden: list[torch.Tensor] = []

        def record(block: nn.Module, args: tuple, kwargs: dict, end=end, hidden=hidden) -> None:
            states = first_tensor(args, kwargs)
            hidden.append(states[torch.arange(len(states), device=states.device), end.to(states.device)].to(device))
            if block is taps[-1]:
                raise Enough

        with ExitStack() as stack:
            stack.enter_context(context.pinned({}))
            for block in taps:
                stack.callback(block.register_forward_pre_hook(record, with_kwargs=True).remove)
            with suppress(Enough):
                root(input_ids=ids, attention_mask=mask, use_cache=False)
        first, last = torch.tensor([subjects[i] for i in rows], device=device)[..., None].unbind(1)
        is_stop = torch.isin(ids, stops.to(ids)) & mask.bool()
        words = words_of(embedding(ids))
        words = mean_of_sentences(words, mask.bool(), is_stop, first, last, end[:, None, None])[:, 0, 0]
        for i, features in zip(rows, torch.cat([words, features_of(hidden)], -1), strict=True):
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
    prompts = [tokenizer(each.text)["input_ids"] for each in labelled]
    path = Path(
        constants.HF_HOME, "lemoe_hf", f"relations-{digest(root, context.taps[adapter_name], prompts)}.safetensors"
    )
    if path.exists():
        for name, tensor in load_file(path).items():
            setattr(relations, name, tensor.to(relations.mean.device))
        return
    device = root.get_input_embeddings().weight.device
    relations.to(device)
    texts = [text.rstrip(" ") for text in tokenizer.batch_decode([[token] for token in range(len(tokenizer))])]
    special = set(tokenizer.all_special_ids)
    for name, ends in (("marks", ("?",)), ("stops", ("?", ".", "!", "\n"))):
        tokens = [
            token for token, text in enumerate(texts) if text.endswith(ends) or name == "stops" and token in special
        ]
        setattr(relations, name, torch.tensor(tokens, dtype=torch.int32, device=device))
    subjects = [
        subject_columns(tokenizer, each.text, ids, each.subject) for each, ids in zip(labelled, prompts, strict=True)
    ]
    features = prompt_features(root, context, adapter_name, prompts, subjects, relations.stops, tokenizer.pad_token_id)
    labels = [
        [each.relation for each in labelled],
        [each.kind for each in labelled],
        [each.text.endswith("?") for each in labelled],
    ]
    relations.fit(LabelledPrompts(features, *(torch.tensor(values, device=device) for values in labels)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.cpu().contiguous() for name, tensor in relations.named_buffers()}, part)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        # The adapter holds it as well: only the next new one has to wait again.
        logger.warning(f"{path} cannot be written ({error}); the next new adapter learns the relations again.")


def subject_columns(tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], subject: str) -> tuple[int, int]:
    """First and last column of a subject in the tokens of a text."""
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    start, lead = text.rindex(subject), leading(ids, plain)
    first, last = columns(tokenizer, text, plain, start, start + len(subject))
    return lead + first, lead + last


def digest(root: nn.Module, taps: list[nn.Module], prompts: list[list[int]]) -> str:
    """Of all that decides the outcome: the prompts' tokens, and a sample of the weights below the last layer looked at."""
    found = hashlib.sha256(repr((VERSION, TURNED_AWAY, prompts)).encode())
    for module in (root.get_input_embeddings(), *taps):
        weight = next(module.parameters()).detach().flatten()
        found.update(str(weight.dtype).encode() + weight[:: len(weight) // 4096 + 1].float().cpu().numpy().tobytes())
    return found.hexdigest()[:16]
