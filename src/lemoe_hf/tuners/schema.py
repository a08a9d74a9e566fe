"""What a stored adapter must be like before anything of it is used; `docs/format.md` tells it in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch

from ..data.edit import Edit
from ..routing.relations import Relations
from ..routing.together import FILE, RESTORE, check_sizes, wrong
from .stamp import DIGEST, SAMPLED, digest_of


LAST = 2**31 - 2  # the highest identifier of an edit: the next one must be a number of 32 bits, too
VOCABULARY = 2**24  # more tokens than any vocabulary has: tables of that length are made
KINDS = 2**9 - 1


@dataclass(frozen=True)
class Rule:
    """Dtype, shape behind the first axis, and range of a tensor; a length of -1 may be any."""

    dtype: torch.dtype
    low: float | None = None
    high: float | None = None
    rest: tuple[int, ...] = ()
    length: int = -1


TOKENS, EDIT = Rule(torch.int32, 0, 2**31 - 1), Rule(torch.int32, 0, LAST)
LISTED, VECTORS = Rule(torch.int32, 0, VOCABULARY), Rule(torch.bfloat16, rest=(Relations.num_directions,))
SCHEMA = {
    "anchors.tokens": TOKENS,
    "anchors.lengths": Rule(torch.int32, 1, 2**31 - 1),
    "anchors.edit": EDIT,
    "anchors.expert": TOKENS,
    "anchors.start": TOKENS,
    "anchors.threshold": Rule(torch.float32, torch.finfo(torch.float32).tiny, 1),
    "anchors.is_prompt": Rule(torch.bool),
    "names.letters": Rule(torch.int32, 0, 0x10FFFF),
    "names.lengths": Rule(torch.int32, 1, 2**31 - 1),
    "names.edit": EDIT,
    "names.flags": Rule(torch.uint8),
    "targets.tokens": TOKENS,
    "targets.lengths": Rule(torch.int32, 1, 2**31 - 1),
    "targets.edit": EDIT,
    "vocabulary.kinds": Rule(torch.int16, 0, KINDS),
    "vocabulary.reply": TOKENS,
    "vocabulary.spelling": Rule(torch.uint8),
    "vocabulary.spelling_lengths": Rule(torch.int16, 0, 2**15 - 1),
    "relations.mean": Rule(torch.float32),
    "relations.directions": VECTORS,
    "relations.emphasis": Rule(torch.float32),
    "relations.cohort": VECTORS,
    "relations.thresholds": Rule(torch.float32, -torch.inf, torch.finfo(torch.float32).max, length=2),
    "relations.marks": LISTED,
    "relations.stops": LISTED,
    "relations.continuing": LISTED,
    "relations.keys": VECTORS,
    "relations.edit": EDIT,
    "relations.threshold": Rule(torch.float32, -torch.inf, torch.finfo(torch.float32).max),
    "ledger.bytes": Rule(torch.uint8),
    "stamp.scale": Rule(torch.float32, 0, torch.finfo(torch.float32).max, length=1),
    "stamp.next_edit": Rule(torch.int64, 0, LAST + 1, length=1),
    "stamp.digest": Rule(torch.uint8, length=DIGEST),
    "stamp.weights": Rule(torch.bfloat16, length=SAMPLED),
    "stamp.vocabulary": Rule(torch.uint8, length=DIGEST),
    "stamp.num_tokens": Rule(torch.int64, 0, 2**31 - 1, length=1),
}
# Adapters from before these were kept do not have them.
OPTIONAL = {"relations.emphasis", "vocabulary.spelling", "vocabulary.spelling_lengths"}
ANY_NUMBER = {"stamp.weights"}  # what cannot be read of a base model is NaN


class Method(Protocol):
    """What a method's layers tell of their tensors, without a model."""

    prefix: ClassVar[str]
    adapter_layer_names: ClassVar[tuple[str, ...]]

    @classmethod
    def check_weights(cls, tensors: Mapping[str, torch.Tensor]) -> None: ...
    @classmethod
    def num_experts(cls, tensors: Mapping[str, torch.Tensor]) -> int | None: ...


def check(method: type[Method], layers: Sequence[Mapping[str, torch.Tensor]]) -> bytes:
    """
    Check all tensors of an adapter, of whatever method, by themselves and against each other.

    Args:
        method (`type` of [`EditingLayer`]): The method's layer.
        layers (`Sequence[Mapping[str, torch.Tensor]]`):
            The tensors of each layer, by their names in it, without the adapter's name: `lemoe_anchors.tokens`.

    Returns:
        Their digest.

    Raises:
        ValueError: If anything is out of place; the message names it.
    """
    prefix = method.prefix
    for tensors in layers:
        check_names(prefix, tensors)
        for name, tensor in tensors.items():
            check_tensor(name, tensor, SCHEMA.get(name.removeprefix(prefix)))
        check_sizes(prefix, tensors)
        method.check_weights(tensors)
    leads = [tensors for tensors in layers if f"{prefix}ledger.bytes" in tensors]
    if len(leads) != 1:
        raise wrong(f"{prefix}ledger.bytes", f"is there {len(leads)} times, and must be once")
    check_edits(prefix, leads[0], method.num_experts(leads[0]))
    stamped, found = leads[0].get(f"{prefix}stamp.digest"), digest(method, layers)
    if stamped is not None and bool(stamped.any()) and bytes(stamped.tolist()) != found:
        raise ValueError(
            f"The adapter's weights ({FILE}) were changed since they were saved: their digest is another. {RESTORE} If you "
            f"have changed them yourself, fill {prefix}stamp.digest with zeros."
        )
    return found


def check_names(prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that nothing of a part is missing, of the ledger and the anchors that belong to it in particular."""
    parts = {name.removeprefix(prefix).partition(".")[0] for name in tensors}
    parts |= {"anchors", "ledger"} if parts & {"anchors", "ledger"} else set()
    expected = [name for name in SCHEMA if name.partition(".")[0] in parts and name not in OPTIONAL]
    missing = [name for name in expected if prefix + name not in tensors]
    if missing:
        raise wrong(prefix + missing[0], "is missing")


def check_tensor(name: str, tensor: torch.Tensor, rule: Rule | None) -> None:
    if tensor.device.type == "meta":
        raise wrong(name, "is missing")
    if rule is None:  # what a method alone has: weights, and small numbers
        if not tensor.is_floating_point() and tensor.dtype not in (torch.int8, torch.int16, torch.int32):
            raise wrong(name, f"is of {tensor.dtype}, and must be of floats or small numbers")
    else:
        shape = (rule.length, *rule.rest)
        if tensor.dtype != rule.dtype:
            raise wrong(name, f"is of {tensor.dtype}, and must be of {rule.dtype}")
        if tensor.dim() != len(shape) or any(b not in (-1, a) for a, b in zip(tensor.shape, shape, strict=True)):
            raise wrong(name, f"has the shape {tuple(tensor.shape)}, and must have {shape}, where -1 is any length")
    if not tensor.numel() or tensor.dtype == torch.bool or name.endswith(tuple(ANY_NUMBER)):
        return
    low, high = (float(each) for each in tensor.detach().aminmax())
    allowed = (-torch.finfo(torch.float32).max, torch.finfo(torch.float32).max)
    if rule is not None and rule.low is not None:
        allowed = (rule.low, rule.high)
    if not (allowed[0] <= low and high <= allowed[1]):  # NaN is neither
        raise wrong(
            name, f"holds numbers from {low:g} to {high:g}, and must have them from {allowed[0]:g} to {allowed[1]:g}"
        )


def check_edits(prefix: str, tensors: Mapping[str, torch.Tensor], num_experts: int | None) -> None:
    """Check that ledger, anchors, targets and keys tell of the same edits, and of experts that are there."""
    experts = {entry["id"]: entry["expert"] for entry in parsed(tensors[f"{prefix}ledger.bytes"], prefix)}
    edits, owners = (tensors[f"{prefix}anchors.{name}"].tolist() for name in ("edit", "expert"))
    found = dict(zip(edits, owners, strict=True))
    if found.keys() != experts.keys():
        one = min(found.keys() ^ experts.keys())
        where = f"{prefix}ledger.bytes" if one in found else f"{prefix}anchors.edit"
        raise wrong(where, f"does not know the edit {one}")
    other = next((edit for edit, expert in zip(edits, owners, strict=True) if experts[edit] != expert), None)
    if other is not None:
        raise wrong(f"{prefix}anchors.expert", f"and the ledger name different experts for the edit {other}")
    if num_experts is not None and max(owners, default=-1) >= num_experts:
        raise wrong(f"{prefix}anchors.expert", f"names the expert {max(owners)}, and there are {num_experts}")
    for part in ("targets", "relations"):
        named = tensors.get(f"{prefix}{part}.edit")
        if named is None:
            continue
        ids = named.tolist()
        if ids != sorted(ids) or (part == "relations" and len(set(ids)) < len(ids)):
            raise wrong(f"{prefix}{part}.edit", "is not in the order of the edits")
        if not experts.keys() >= set(ids):
            raise wrong(f"{prefix}{part}.edit", f"names the edit {min(set(ids) - experts.keys())}, which is not there")
    stamped = tensors.get(f"{prefix}stamp.next_edit")
    if stamped is not None and 0 < int(stamped) <= max(experts, default=-1):
        raise wrong(f"{prefix}stamp.next_edit", f"is {int(stamped)}, and there is an edit {max(experts)}")


def digest(method: type[Method], layers: Sequence[Mapping[str, torch.Tensor]]) -> bytes:
    """As of [`digest_of`], without what is in training, and of the stamp no more than edits depend on, where it is known."""
    left_out = (f"{method.prefix}stamp.", *(f"{name}." for name in method.adapter_layer_names))
    kept = {f"{method.prefix}stamp.{name}" for name in ("scale", "next_edit")}
    return digest_of(
        {
            name: tensor
            for name, tensor in tensors.items()
            if (name in kept and bool(tensor.any())) or not name.startswith(left_out)
        }
        for tensors in layers
    )


# --------------------------------------------------------------------------------------------------------------- ledger


def parsed(ledger: torch.Tensor, prefix: str) -> list[dict]:
    """
    The entries of a ledger's bytes.

    Raises:
        ValueError: If one of them is no entry; the message names its line.
    """
    name, entries = f"{prefix}ledger.bytes", []
    try:
        text = bytes(ledger.cpu().numpy()).decode()
    except UnicodeDecodeError as error:
        raise wrong(name, f"is no text in UTF-8 ({error.reason} at byte {error.start})") from None
    for number, line in enumerate(text.split("\n"), 1):
        if line:
            try:
                entries.append(json.loads(line))
                check_entry(entries[-1])
            except (ValueError, TypeError, RecursionError) as error:
                raise wrong(f"{name}, line {number},", f"is no entry of the ledger ({str(error)[:300]})") from None
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) < len(ids):
        raise wrong(name, f"has two edits {Counter(ids).most_common(1)[0][0]}")
    return entries


def check_entry(entry: Any) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"it is a {type(entry).__name__}")
    for key in ("id", "expert"):
        if type(entry.get(key)) is not int or not 0 <= entry[key] <= LAST:
            raise ValueError(f"`{key}` must be a whole number from 0 to {LAST}; got {str(entry.get(key))[:40]!r}")
    for key in ("prompt_ids", "target_ids"):
        tokens = entry.get(key, [])
        if not isinstance(tokens, list) or any(type(token) is not int or not 0 <= token < 2**31 for token in tokens):
            raise ValueError(f"`{key}` must be a list of tokens")
    if ("prompt_ids" in entry) != ("target_ids" in entry):
        raise ValueError("it has only one of `prompt_ids` and `target_ids`")
    if "edit" in entry:
        if not isinstance(entry["edit"], dict):
            raise ValueError("`edit` must be an object")
        Edit(**entry["edit"])
