"""
A saved adapter, read without its base model and without PEFT: for serving engines, which bring a model of their own.

Axes: `n` tokens, `e` experts, `d` size of their input, `r` their width, `o` size of their output.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file

from .routing import together
from .routing.anchors import Anchors
from .routing.names import Names
from .routing.relations import TAPS, Relations
from .routing.router import Router
from .routing.targets import Targets
from .routing.vocabulary import Vocabulary, kinds_from_lists


KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lemoe_(?P<part>\w+)\.(?P<name>\w+)")
# The tensors whose lengths the config tells, by what it calls them.
SIZES = {
    "num_experts": ("bank", "in_proj"),
    "num_open_experts": ("open", "in_proj"),
    "num_anchors": ("anchors", "lengths"),
    "num_anchor_tokens": ("anchors", "tokens"),
    "num_ledger_bytes": ("ledger", "bytes"),
    "num_targets": ("targets", "lengths"),
    "num_target_tokens": ("targets", "tokens"),
    "num_token_kinds": ("vocabulary", "kinds"),
    "num_reply_tokens": ("vocabulary", "reply"),
    "num_spelling_bytes": ("vocabulary", "spelling"),
    "num_spelled_tokens": ("vocabulary", "spelling_lengths"),
    "num_names": ("names", "lengths"),
    "num_name_letters": ("names", "letters"),
    "num_relation_features": ("relations", "mean"),
    "num_relation_prompts": ("relations", "cohort"),
    "num_relation_marks": ("relations", "marks"),
    "num_relation_stops": ("relations", "stops"),
    "num_relation_continuing": ("relations", "continuing"),
    "num_relation_keys": ("relations", "keys"),
    "num_relation_emphasis": ("relations", "emphasis"),
}
# Of a module with experts everything that is saved, by its part.
Parts = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Bank:
    """
    The experts beside one module, stacked.

    Args:
        in_proj (`torch.Tensor` of shape `(e, d, r)`), out_proj (`torch.Tensor` of shape `(e, r, o)`): Of LoRA experts.
        gate_proj (`torch.Tensor` of shape `(e, d, r)`, *optional*): Of FFN experts, beside them.
        scale (`float`): The unit of what they add.
        normalizes (`bool`): Whether they read inputs of unit root mean square.
    """

    in_proj: torch.Tensor
    out_proj: torch.Tensor
    gate_proj: torch.Tensor | None
    scale: float
    normalizes: bool

    def __len__(self) -> int:
        return len(self.in_proj)

    def __call__(self, x: torch.Tensor, experts: torch.Tensor) -> torch.Tensor:
        """
        What is to be added to a module's output at some tokens; all others must be left alone.

        Args:
            x (`torch.Tensor` of shape `(n, d)`): What enters the module, or comes out of it if it is a whole layer.
            experts (`torch.Tensor` of shape `(n,)`): The expert that acts on each.

        Returns:
            `torch.Tensor` of shape `(n, o)`, in the dtype of `x`; within it is float32.
        """
        read = x.float()
        if self.normalizes:
            read = F.rms_norm(read, read.shape[-1:])
        h = torch.bmm(read[:, None], self.in_proj[experts].float())
        if self.gate_proj is not None:
            h = F.silu(torch.bmm(read[:, None], self.gate_proj[experts].float())) * h
        return (torch.bmm(h, self.out_proj[experts].float())[:, 0] * self.scale).to(x.dtype)


@dataclass(frozen=True)
class Adapter:
    """
    What a folder holds that `save_pretrained` has written.

    Args:
        config (`dict`): Of the adapter, as it was saved; all that [`LEMoEConfig`] describes.
        banks (`dict` of `str` to [`Bank`]): The experts, by the name of the module of the base model that they are beside.
        anchors ([`Anchors`]), names ([`Names`]), targets ([`Targets`]), vocabulary ([`Vocabulary`]),
        relations ([`Relations`], *optional*): How a text finds them.
        ledger (`list[dict]`): The edits, oldest first.

    An engine keeps a [`Text`] of each request and makes an [`ExpertPass`] of each forward pass, with a [`Piece`] for each text
    in it. The pass is shown what enters the layers of `taps`, and tells at the last which experts act on which tokens; there
    the [`Bank`] tells what to add. `tests/test_adapter.py` has such an engine in some thirty lines.
    """

    config: dict[str, Any]
    banks: dict[str, Bank]
    anchors: Anchors
    names: Names
    targets: Targets
    vocabulary: Vocabulary
    relations: Relations | None
    ledger: list[dict[str, Any]]

    @property
    def router(self) -> Router:
        """
        Which tells of a text which experts act where.

        Raises:
            ValueError: If the adapter routes by learned keys, which read the base model's embeddings.
        """
        if self.config["routing"] != "nearest_anchor":
            raise ValueError(
                f"The adapter has `routing={self.config['routing']!r}`: its router reads the base model's embeddings, and "
                f"cannot do without the model. Load it by `PeftModel.from_pretrained`."
            )
        thresholds = self.config["threshold"], self.config["relation_threshold"]
        near = self.config.get("fuzzy", True)
        return Router(self.anchors, self.targets, self.vocabulary, self.relations, *thresholds, self.names, near)

    @property
    def taps(self) -> list[int]:
        """
        The layers whose hidden states tell what is asked for, in the order in which an [`ExpertPass`] is to see them: of each
        what enters its FFN, or the layer itself where there is no FFN to call. The last is the first one with experts.
        """
        depths = [int(found[1]) for name in self.banks if (found := re.search(r"(?:^|\.)(\d+)(?:\.|$)", name))]
        return sorted({round(share * min(depths)) for share in TAPS}) if depths else []

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """
        Read a folder.

        Raises:
            ValueError: If there is no such folder, if it holds no adapter, a damaged one, or one of another method.
        """
        config = read_config(Path(folder))
        modules = read_modules(Path(folder) / "adapter_model.safetensors")
        try:
            return cls._of(config, modules)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if "are damaged" in str(error):  # it says all that is to be said, but where
                raise ValueError(f"The adapter in {folder} is damaged: {error}") from error
            what = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"The adapter in {folder} is damaged: {what}. Restore it from a copy.") from error

    @classmethod
    def _of(cls, config: dict[str, Any], modules: dict[str, Parts]) -> Adapter:
        lead = next((parts for parts in modules.values() if "anchors" in parts), None)
        if lead is None:
            raise ValueError("it has no anchors")
        check_sizes(config, lead)
        together.check_sizes("", {f"{part}.{name}": each for part in lead for name, each in lead[part].items()})
        for parts in modules.values():
            check_sizes({name: config[name] for name in ("num_experts", "num_open_experts")}, parts)
        anchors, names, targets, vocabulary = Anchors(), Names(), Targets(), Vocabulary()
        fill(anchors, lead["anchors"])
        for module, part in ((names, "names"), (targets, "targets"), (vocabulary, "vocabulary")):
            if part in lead:  # adapters from before these were kept have none
                empty = {name: tensor for name, tensor in module.named_buffers() if part == "vocabulary"}
                fill(module, empty | lead[part])  # nor one that did not know yet how tokens are spelled
        relations = None
        if config["relation_gate"] and config["routing"] == "nearest_anchor":
            relations = Relations()
            # Adapters from before words alone were read have no emphasis.
            fill(relations, {"emphasis": torch.zeros(0)} | lead["relations"])
            if not vocabulary.is_known and len(relations.stops):
                vocabulary.kinds = kinds_from_lists(relations.marks, relations.stops, relations.continuing)
        banks = {name: bank_of(config, parts, anchors) for name, parts in modules.items()}
        text = lead["ledger"]["bytes"].numpy().tobytes().decode()
        ledger = [json.loads(line) for line in text.split("\n") if line]
        return cls(config, banks, anchors, names, targets, vocabulary, relations, ledger)


def read_config(folder: Path) -> dict[str, Any]:
    path = folder / "adapter_config.json"
    if not folder.is_dir():
        raise ValueError(
            f"There is no folder {folder}. Pass one that `save_pretrained` has written; `huggingface_hub.snapshot_download` "
            f"fetches one from the Hub."
        )
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter: there is no {path.name}.")
    try:
        config = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it from a copy.") from None
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind != "LEMOE":
        raise ValueError(
            f"{folder} holds an adapter of type {kind}, not LEMOE. Load it by `PeftModel.from_pretrained`."
        )
    if config.get("modules_to_save"):
        raise ValueError(
            f"The adapter in {folder} also replaces {config['modules_to_save']} of the base model (`modules_to_save`), which "
            f"are no experts. Load it by `PeftModel.from_pretrained`."
        )
    return config


def read_modules(path: Path) -> dict[str, Parts]:
    """All tensors of an adapter, by the module of the base model that they belong to."""
    if not path.is_file():
        raise ValueError(f"There is no {path}: the adapter is not complete.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it from a copy.") from None
    modules: dict[str, Parts] = {}
    for key, tensor in tensors.items():
        found = KEY.fullmatch(key)
        if found is None:
            raise ValueError(f"{path} is not the file of a LEMoE adapter: it has a tensor {key!r}.")
        modules.setdefault(found["module"], {}).setdefault(found["part"], {})[found["name"]] = tensor
    return modules


def check_sizes(config: dict[str, Any], parts: Parts) -> None:
    for size, (part, name) in SIZES.items():
        if size in config:
            found = len(parts.get(part, {}).get(name, ()))
            if found != config[size]:
                raise ValueError(f"the config tells `{size}={config[size]}`, and lemoe_{part}.{name} holds {found}")


def fill(module: Anchors | Names | Targets | Vocabulary | Relations, tensors: dict[str, torch.Tensor]) -> None:
    """Give a module that holds nothing what was saved of it."""
    for name, empty in module.named_buffers():
        saved = tensors[name]
        if saved.dim() != empty.dim() or saved.shape[1:] != empty.shape[1:]:
            raise ValueError(f"{type(module).__name__}.{name} has the shape {tuple(saved.shape)}")
        setattr(module, name, saved.to(empty.dtype))


def bank_of(config: dict[str, Any], parts: Parts, anchors: Anchors) -> Bank:
    """The experts of a module: those that were committed, and those in training if there are edits in them."""
    bank, in_training = parts["bank"], parts["open"]
    experts = anchors.expert.tolist()
    if max(experts, default=-1) >= len(bank["in_proj"]):
        bank = {name: torch.cat([weight.float(), in_training[name].float()]) for name, weight in bank.items()}
    gate = bank["gate_proj"] if config["expert"] == "ffn" else None
    scale = config["lam"] * (config["output_scale"] or 1.0)
    found = Bank(bank["in_proj"], bank["out_proj"], gate, scale, config["normalize"])
    num, _, width = found.in_proj.shape
    if found.out_proj.shape[:2] != (num, width) or (gate is not None and gate.shape != found.in_proj.shape):
        shapes = {name: tuple(weight.shape) for name, weight in bank.items()}
        raise ValueError(f"its experts have shapes that do not go together, {shapes}")
    if not all(0 <= expert < num for expert in experts):
        raise ValueError(f"its anchors lead to experts {min(experts)} to {max(experts)}, and there are {num}")
    return found
