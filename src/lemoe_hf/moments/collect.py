"""Second moments of what enters the second matrix of an FFN, over many tokens, computed once and kept on disk.

Axes: `b` texts, `t` tokens, `m` width of an input.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..generation import evaluating, pad_right
from ..structure import find_ffn_outputs, fingerprint, text_config


NUM_TOKENS = 8192
TEXT_LENGTH = 128  # tokens; longer texts are cut
SAMPLE_LENGTH = 64
SAMPLES_AT_ONCE = 128
TOKENS_AT_ONCE = 2048
WEIGHTS_LOOKED_AT = 64  # values of each parameter that tell one model from another of the same shape


class _Enough(Exception):
    """The last module that is looked at has been reached; what lies above it need not run."""


def second_moments(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    layers: list[int],
    data: Iterable[str | Mapping[str, Any]] | None = None,
    num_tokens: int = NUM_TOKENS,
    text_column: str = "text",
    seed: int = 0,
) -> dict[int, torch.Tensor]:
    r"""
    Uncentred second moments $\frac1t \sum k k^T$ of what enters the second matrix of the FFN of some layers, over all tokens.

    They are kept in the cache of Hugging Face (`HF_HOME/lemoe_hf/moments`, as safetensors, one file a layer), under the shape
    and a sample of the weights of the model, the layer, and the tokens.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model, before it is edited.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        layers (`list[int]`): Which layers.
        data (`Iterable`, *optional*):
            Texts, or records with a text in `text_column` such as a `datasets.Dataset`, of which as many are read as are
            needed. Without them, the model's own samples, drawn from its own start token with `seed`.
        num_tokens (`int`, *optional*, defaults to 8192):
            Tokens to look at, the papers 100,000 texts of them. With a ridge (see [`Whitening`]) a few times the width of an
            input is enough.
        text_column (`str`, *optional*, defaults to `"text"`): Of records.
        seed (`int`, *optional*, defaults to 0): Of the model's own samples.

    Returns:
        For each layer, a tensor of shape `(m, m)` in single precision.

    Raises:
        ValueError: If there are no tokens in the data, or a layer has no such matrix.
    """
    names = find_ffn_outputs(model, layers)
    if data is None:
        texts, drawn_from = None, f"own samples, seed {seed}, {num_tokens} tokens of {SAMPLE_LENGTH}"
    else:
        texts = texts_of(data, tokenizer, num_tokens, text_column)
        drawn_from = str(texts)
    common = (fingerprint(model), digest_of_weights(model), drawn_from)
    paths = {layer: _path(*common, names[layer]) for layer in layers}
    found = {layer: moment for layer, path in paths.items() if (moment := _read(path)) is not None}
    missing = [layer for layer in layers if layer not in found]
    if missing:
        texts = _own_texts(model, num_tokens, seed, _path(*common, "texts")) if texts is None else texts
        for layer, moment in zip(missing, _collected(model, [names[i] for i in missing], texts), strict=True):
            _write(paths[layer], moment)
            found[layer] = moment
    return found


def _own_texts(model: PreTrainedModel, num_tokens: int, seed: int, path: Path) -> list[list[int]]:
    """A model's samples, drawn once for all its layers."""
    found = _read(path)
    if found is None:
        found = torch.tensor(samples_of(model, num_tokens, seed))
        _write(path, found)
    return found.tolist()


def _collected(model: PreTrainedModel, names: list[str], texts: list[list[int]]) -> list[torch.Tensor]:
    """The moments themselves; products in single precision, sums in double."""
    sums: list[torch.Tensor] = []
    for rows, states in inputs_of(model, names, texts):
        lengths = torch.tensor([len(texts[row]) for row in rows])
        is_token = torch.arange(states[0].shape[1]) < lengths[:, None]
        for i, inputs in enumerate(states):
            flat = inputs[is_token.to(inputs.device)].float()
            product = (flat.T @ flat).cpu().double()
            if i < len(sums):
                sums[i] += product
            else:
                sums.append(product)
    total = sum(map(len, texts))
    return [(each / total).float() for each in sums]


@torch.no_grad()
def inputs_of(
    model: PreTrainedModel, names: Sequence[str], texts: Sequence[list[int]]
) -> Iterator[tuple[list[int], list[torch.Tensor]]]:
    """
    Run a model on texts as far as the last of some modules.

    Args:
        names (`Sequence[str]`): Of the modules.
        texts (`Sequence[list[int]]`): Tokens.

    Yields:
        For some texts at a time, the shortest first: which they are, and what entered each module, of shape `(b, t, m)`; the
        texts are padded on the right.

    Raises:
        ValueError: If a module does not run on text alone, or reads other columns than those of the text.
    """
    device: Any = model.get_input_embeddings().weight.device
    modules = [model.get_submodule(name) for name in names]
    for rows in _batches(texts):
        ids, mask = pad_right([texts[row] for row in rows], 0, device)
        found: dict[int, torch.Tensor] = {}
        last = len(modules)

        def keep(index: int, args: Any, found: Any = found, last: int = last) -> None:
            if args[0].shape[:-1].numel() != ids.numel():  # noqa: B023
                raise ValueError(
                    f"{type(model).__name__} puts columns of its own before a text, which keys are not read behind."
                )
            found[index] = args[0].reshape(*ids.shape, -1)  # noqa: B023 OPT flattens texts
            if len(found) == last:
                raise _Enough

        with ExitStack() as stack:
            stack.enter_context(evaluating(model))
            for i, module in enumerate(modules):
                hook = module.register_forward_pre_hook(lambda module, args, i=i, keep=keep: keep(i, args))
                stack.callback(hook.remove)
            with suppress(_Enough):
                model(input_ids=ids, attention_mask=mask, use_cache=False)
        unseen = [names[i] for i in range(last) if i not in found]
        if unseen:
            raise ValueError(f"{unseen} of {type(model).__name__} do not run on text alone. Pass other layers.")
        yield rows, [found[i] for i in range(last)]


def _batches(texts: Sequence[list[int]]) -> Iterator[list[int]]:
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    batch: list[int] = []
    for row in order:
        if batch and (len(batch) + 1) * len(texts[row]) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def texts_of(
    data: Iterable[str | Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, num_tokens: int, text_column: str
) -> list[list[int]]:
    """
    Tokens of as many texts as are needed; long texts are cut into several.

    Raises:
        TypeError: If a record holds no text.
        ValueError: If there are no tokens.
    """
    found: list[list[int]] = []
    for record in data:
        text = record.get(text_column) if isinstance(record, Mapping) else record
        if not isinstance(text, str):
            raise TypeError(
                f"`data` must hold texts, or records with a text in {text_column!r}; got {record!r:.100}. Name the column "
                f"with `text_column`."
            )
        ids = tokenizer(text, truncation=False, verbose=False)["input_ids"] if text.strip() else []
        for first in range(0, len(ids), TEXT_LENGTH):
            found.append(ids[first : first + min(TEXT_LENGTH, num_tokens - sum(map(len, found)))])
            if sum(map(len, found)) >= num_tokens:
                return found
    if not found:
        raise ValueError("`data` holds no tokens to take statistics of: it is empty, or all its texts are.")
    return found


@torch.no_grad()
def samples_of(model: PreTrainedModel, num_tokens: int, seed: int = 0, length: int = SAMPLE_LENGTH) -> list[list[int]]:
    """
    Texts that a model makes up, `length` tokens each, without the token from which they start.

    Raises:
        ValueError: If the model has neither a start nor an end token to begin with.
    """
    config = text_config(model)
    ends = config.eos_token_id
    start = config.bos_token_id if config.bos_token_id is not None else ends[0] if isinstance(ends, list) else ends
    if start is None:
        raise ValueError(f"{type(model).__name__} has no token to begin a text with. Pass texts as `data`.")
    device: Any = model.get_input_embeddings().weight.device
    generate: Any = model.generate
    num = -(-num_tokens // length)
    rows: list[list[int]] = []
    with evaluating(model), torch.random.fork_rng():
        torch.manual_seed(seed)
        for first in range(0, num, SAMPLES_AT_ONCE):
            ids = torch.full((min(SAMPLES_AT_ONCE, num - first), 1), start, device=device)
            output = generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                min_new_tokens=length,
                max_new_tokens=length,
                pad_token_id=start,
            )
            rows += output[:, 1:].tolist()
    return rows


def digest_of_weights(model: PreTrainedModel) -> str:
    """Of a sample of every parameter of the base model: models of one shape differ in it, and so do merged adapters."""
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if "lora_" in name or "lemoe_" in name:
            continue
        name = name.replace(".base_layer", "")
        sample = weight.detach().flatten()[:: weight.numel() // WEIGHTS_LOOKED_AT + 1]
        digest.update(name.encode() + sample.contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _path(*parts: str) -> Path:
    name = hashlib.sha256(repr(parts).encode()).hexdigest()[:32]
    return Path(constants.HF_HOME, "lemoe_hf", "moments", f"{name}.safetensors")


def _read(path: Path) -> torch.Tensor | None:
    with suppress(OSError, SafetensorError, KeyError):  # not there, or cut off: it is computed again
        return load_file(path)["values"]
    return None


def _write(path: Path, values: torch.Tensor) -> None:
    with suppress(OSError):  # a cache that cannot be written costs time only
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        save_file({"values": values}, part)
        part.replace(path)
