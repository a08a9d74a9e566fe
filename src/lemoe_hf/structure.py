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
    outside = [index for index in layers if not 0 <= index < len(stack)]
    if outside:
        raise ValueError(
            f"`layers_to_transform` asks for {outside}, but {type(model).__name__} has {len(stack)} layers "
            f"(0 to {len(stack) - 1}) in `{stack_name}`."
        )
    targets = []
    for index in layers:
        bypassed = find_bypassed(stack[index])
        targets.append(f"{stack_name}.{index}" + (f".{bypassed}" if bypassed else ""))
    return targets


def linear_sizes(module: nn.Module) -> tuple[int, int]:
    """Sizes of the input and output of a linear layer."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    return module.in_features, module.out_features


def find_linear(layer: nn.Module, hidden: int) -> str | None:
    """
    Name of the second matrix of a layer's FFN, which maps back to the residual stream (`down_proj`, `fc2`, `c_proj`); where no
    module is the FFN, of the last linear layer outside attention that does. `None` where there is none, or one an expert.
    """
    ffn = find_ffn(layer)
    names = []
    for name, module in layer.named_modules():
        is_within = name.startswith(f"{ffn}.") if ffn else not re.search(r"attn|attention", name)
        if any(name.startswith(f"{other}.") for _, other in names):  # what an adapter has wrapped
            continue
        if is_within and (hasattr(module, "in_features") or isinstance(module, Conv1D)):
            sizes = linear_sizes(module)
            if sizes[1] == hidden and not re.search(r"gate$|router", name):
                names.append((sizes[0] != hidden, name))
    wide = [name for is_wide, name in names if is_wide] or [name for _, name in names]
    return wide[-1] if wide and not any(re.search(r"experts?\.\d", name) for name in wide) else None


def find_linear_targets(model: nn.Module, depth: float, num: int, layers: list[int] | None = None) -> list[str]:
    """
    Names of the linear layers, as [`find_linear`] finds them, in `num` consecutive layers, the first at `depth`, or in the
    given layers.

    Raises:
        ValueError: If there are not as many layers, or one of them has no such linear layer.
    """
    stack_name, stack = find_stack(model)
    if layers is None:
        first = min(round(depth * len(stack)), len(stack) - 1)
        layers = list(range(first, first + num))
    outside = [index for index in layers if not 0 <= index < len(stack)]
    if outside:
        raise ValueError(
            f"{type(model).__name__} has {len(stack)} layers (0 to {len(stack) - 1}) in `{stack_name}`, and layers {layers} "
            f"are asked for. Lower `num_layers` or `depth`, or pass `layers_to_transform`."
        )
    targets = []
    for index in layers:
        name = find_linear(stack[index], hidden_size(model))
        if name is None:
            linear = [name for name, module in stack[index].named_modules() if hasattr(module, "in_features")]
            raise ValueError(
                f"Layer {index} of {type(model).__name__} has no single linear layer that ends its FFN. Pass `target_modules` "
                f"with names of linear layers; there are {', '.join(linear) or 'none'}."
            )
        targets.append(f"{stack_name}.{index}.{name}")
    return targets


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
