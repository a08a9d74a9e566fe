"""Find the parts of any causal language model by its structure: the stack of layers, and the FFN of a layer."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


FFN_NAME = re.compile(
    r"(^|_)(mlp|ffn|ff|feed_?forward|moe|experts?|block_sparse_moe|shared_mlp|channel_mix(er|ing)?)($|_)"
)
NOT_FFN_NAME = re.compile(r"norm|^ln|_ln|attn|attention|dropout|drop$|gate$|router|^post_|_hc$|hyper_connection")
MIXER = re.compile(r"attn|attention|mixer|mamba|ssm|conv|adapter")  # of a layer, what stands beside its FFN
FFN_OUTPUT_NORM = re.compile(r"^post_(feed_?forward|mlp|ffn|moe)_?(layer)?norm$|^post_norm2$")

# What a model may call its cache: since transformers 5.24, before that, and before that in state-space models.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")

UNSUITABLE = {
    "reformer": "its reversible layers run again in the backward pass, and only in training mode",
    "xlnet": "it reads a text in any order, and its layers keep columns before rows",
}


def find_stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """
    The stack of layers of a decoder: the longest list of modules, the outermost of equals. Of a multimodal model it is that
    of the language model.

    Returns:
        Its name within `model`, and the list.

    Raises:
        ValueError: If there is none; the message lists what was looked at.
    """
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    decoder = model.get_decoder() if isinstance(model, PreTrainedModel) else model
    within = {id(module) for module in decoder.modules()}
    lists = [(name, module) for name, module in lists if id(module) in within] or lists
    # A list inside the layers of another, such as the experts of a mixture, is not the stack.
    stacks = [
        (name, module)
        for name, module in lists
        if not any(name.startswith(f"{other}.") for other, _ in lists) and any(True for _ in module.parameters())
    ]
    if not stacks:
        children = ", ".join(f"{name} ({type(module).__name__})" for name, module in model.named_children())
        raise ValueError(
            f"No stack of layers found in {type(model).__name__}: it holds no nn.ModuleList with parameters. Looked at: "
            f"{children or 'no modules'}. Pass `target_modules` with the names of the modules to bypass."
        )
    return max(stacks, key=lambda item: (len(item[1]), -item[0].count(".")))


def find_ffn(layer: nn.Module) -> str | None:
    """Name of the FFN module of a layer, or `None` where the layer has no single one (OPT, XGLM, Mamba)."""
    names = [
        name
        for name, child in layer.named_children()
        if FFN_NAME.search(name) and not NOT_FFN_NAME.search(name) and any(True for _ in child.parameters())
    ]
    names = [name for name in names if not isinstance(layer.get_submodule(name), (nn.ModuleList, nn.Linear))]
    return names[-1] if names else None


def find_bypassed(layer: nn.Module) -> str | None:
    """
    Name of the module of a layer that adds the FFN's part to the residual stream, or `None` for the whole layer.

    It is the FFN, unless the layer normalises what its FFN adds (Gemma 2 and 3, OLMo 2, GLM-4): a bypass before that norm
    would have no say in how much it adds, and the layer is bypassed. Layers of Gemma 3n return several streams; there it is
    the norm.
    """
    names = [name for name, _ in layer.named_children()]
    norm = next((name for name in names if FFN_OUTPUT_NORM.search(name)), None)
    if norm is None:
        return find_ffn(layer)
    return norm if "altup" in names else None


def find_targets(model: nn.Module, depth: float, layers: list[int] | None = None) -> list[str]:
    """
    Names of the modules to bypass: those that `find_bypassed` names in the layer at `depth`, or in the given layers.

    Raises:
        ValueError: If there is no stack of layers, or not the layers asked for.
    """
    stack_name, stack = find_stack(model)
    if layers is None:
        layers = [min(round(depth * len(stack)), len(stack) - 1)]
    check_layers(model, layers, "layers_to_transform")
    targets = []
    for index in layers:
        bypassed = find_bypassed(stack[index])
        targets.append(f"{stack_name}.{index}" + (f".{bypassed}" if bypassed else ""))
    return targets


def find_ffn_outputs(model: nn.Module, layers: list[int] | None = None) -> dict[int, str]:
    """
    Names of the second matrix of the FFN of layers, which writes to the residual stream: `down_proj` in Llama, `c_proj` in
    GPT-2, `fc2` in OPT. By default of all layers.

    It is the last linear map in a layer's FFN (or, in a layer without an FFN module, in the layer itself) whose output is as
    wide as the residual stream and whose input is what another linear map there puts out.

    Raises:
        ValueError: If there is no stack of layers, a layer that is asked for is not there, or has no such matrix, as in a
            mixture of experts.
    """
    stack_name, stack = find_stack(model)
    layers = list(range(len(stack))) if layers is None else layers
    check_layers(model, layers, "layers")
    return {index: f"{stack_name}.{index}.{_ffn_output(model, stack[index], index)}" for index in layers}


def _ffn_output(model: nn.Module, layer: nn.Module, index: int) -> str:
    hidden, name = hidden_size(model), find_ffn(layer)
    ffn = layer if name is None else layer.get_submodule(name)
    # An FFN in the layer itself, or in two modules of it, stands beside attention.
    parts = [(part, module) for part, module in ffn.named_modules() if name or not MIXER.search(part)]
    linears: dict[str, tuple[int, int]] = {}
    for part, module in parts:
        sizes = linear_sizes(module)
        # What lies within a linear map belongs to an adapter.
        if part and sizes is not None and not any(part.startswith(f"{outer}.") for outer in linears):
            linears[part] = sizes
    own = [module for part, module in parts if not any(part.startswith(f"{outer}.") for outer in linears)]
    is_mixture = any(isinstance(module, nn.ModuleList) for module in own) or any(
        weight.dim() == 3 and len(weight) > 1
        for module in own
        if not isinstance(module, nn.Conv1d)
        for weight in module.parameters(recurse=False)
    )
    inner = {outputs for _, outputs in linears.values()} | {outputs // 2 for _, outputs in linears.values()}
    found = [
        part
        for part, (inputs, outputs) in linears.items()
        if outputs == hidden and inputs in inner and (name or inputs != outputs)
    ]
    if is_mixture or not found:
        why = "is a mixture of experts, which has one for each expert" if is_mixture else "has none"
        looked = ", ".join(f"{part} {sizes}" for part, sizes in linears.items()) or "no linear maps"
        raise ValueError(
            f"What is edited is the second matrix of a dense FFN; layer {index} of {type(model).__name__} {why}. Looked at: "
            f"{looked}. Pass other layers, or edit this model with LEMoE."
        )
    return f"{name}.{found[-1]}" if name else found[-1]


def linear_sizes(module: Any) -> tuple[int, int] | None:
    """Inputs and outputs of a linear map, `nn.Linear`, GPT-2's `Conv1D` or an adapter's layer around one; else `None`."""
    if isinstance(module, Conv1D):
        return module.weight.shape[0], module.weight.shape[1]
    if isinstance(module, nn.Linear) or hasattr(module, "base_layer") and hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return None


def check_layers(model: nn.Module, layers: list[int], argument: str) -> None:
    """
    Raises:
        ValueError: If a layer that is asked for is not there.
    """
    stack_name, stack = find_stack(model)
    outside = [index for index in layers if not 0 <= index < len(stack)]
    if outside:
        raise ValueError(
            f"`{argument}` asks for {outside}, but {type(model).__name__} has {len(stack)} layers "
            f"(0 to {len(stack) - 1}) in `{stack_name}`."
        )


def check_causal(model: nn.Module) -> None:
    """
    Refuse what is no causal language model, or none that can be edited.

    Raises:
        ValueError: If the model is one of those.
    """
    config, name = getattr(model, "config", None), type(model).__name__
    for kind, is_one in (
        ("an encoder-decoder model", getattr(config, "is_encoder_decoder", False)),
        ("a masked language model", name.endswith("ForMaskedLM")),
    ):
        if is_one:
            raise ValueError(
                f"{name} is {kind}; LEMoE edits causal language models. Pass a model loaded with AutoModelForCausalLM."
            )
    reason = UNSUITABLE.get(getattr(config, "model_type", ""))
    if reason is not None:
        raise ValueError(f"{name} cannot be edited: {reason}. Use another model.")


def text_config(model: nn.Module) -> Any:
    """The config of the language model, which multimodal models keep inside their own."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def bos_token(model: nn.Module) -> int | None:
    """The token that a tokenizer may put before a text."""
    return getattr(text_config(model), "bos_token_id", None)


def hidden_size(model: Any) -> int:
    """Width of the residual stream; 0 for a model that embeds no tokens."""
    config = text_config(model)
    for name in ("hidden_size", "n_embd", "d_model", "dim", "n_embed"):
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    embeddings = getattr(model, "get_input_embeddings", None)
    return embeddings().weight.shape[1] if embeddings else 0


def ffn_width(module: nn.Module, hidden: int) -> int:
    """
    Inner width of an FFN: what its output projection reads, or the widest of several.

    What reads the residual stream tells less: it may hold gate and input side by side, and be twice as wide. Of experts in
    one tensor, of shape `(e, width, hidden)` or `(e, hidden, width)`, the output projection is the smallest. A matrix of
    another kind, as in GPT-2, tells by its largest dimension that is not the hidden size.
    """
    shapes: list[tuple[int, ...]] = []
    widths = []
    parts: list[Any] = list(module.modules())
    for part in parts:
        if hasattr(part, "in_features"):  # whose weight may be quantised, and packed into another shape
            shapes.append((part.in_features, part.out_features))
            if part.out_features == hidden != part.in_features:
                widths.append(part.in_features)
        else:
            shapes += [tuple(weight.shape) for weight in part.parameters(recurse=False)]
    stacked = [shape[1] * shape[2] // hidden for shape in shapes if len(shape) == 3 and hidden in shape[1:]]
    if stacked:
        widths.append(min(stacked))
    other = [size for shape in shapes if len(shape) == 2 for size in shape if size != hidden]
    return max(widths or other, default=hidden)


def fingerprint(model: nn.Module) -> str:
    """Digest of what an adapter depends on in its base model: family, sizes and vocabulary."""
    config = getattr(model, "config", None)
    shape: dict[str, int | str] = {"hidden_size": hidden_size(model)}
    for name in ("model_type", "vocab_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"):
        value = getattr(config, name, None)
        if isinstance(value, (int, str)):
            shape[name] = value
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


def streams_of(model: nn.Module) -> int:
    """How often layers are given each column: ProphetNet runs what it predicts beside what it reads."""
    config = text_config(model)
    return 1 + config.ngram if getattr(config, "model_type", "") == "prophetnet" else 1


def counts_its_cache(model: nn.Module) -> bool:
    """Whether a cache holds a column for each token: CPM-Ant's holds a prompt of its own, and is given all tokens anew."""
    return getattr(text_config(model), "model_type", "") != "cpmant"


def accepted_by(root: nn.Module) -> set[str]:
    """Names of what a forward pass can be given."""
    return set(inspect.signature(root.forward).parameters)


def cache_argument(root: nn.Module) -> str | None:
    """Under which name a forward pass takes its cache; `None` where it takes none."""
    return next((name for name in CACHE_NAMES if name in accepted_by(root)), None)
