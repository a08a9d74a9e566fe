"""Which stored tensors of what is known of edits go together, and how."""

from __future__ import annotations

from collections.abc import Mapping

import torch


FILE = "adapter_model.safetensors"
RESTORE = "Restore the file from a copy."
# Tensors that go together, item by item.
TOGETHER = (
    tuple(f"anchors.{name}" for name in ("lengths", "edit", "expert", "start", "threshold", "is_prompt")),
    ("names.lengths", "names.edit", "names.flags"),
    ("targets.lengths", "targets.edit"),
    ("relations.keys", "relations.edit", "relations.threshold"),
    ("relations.mean", "relations.directions"),
)


def wrong(name: str, found: str) -> ValueError:
    return ValueError(f"The adapter's weights ({FILE}) are damaged: {name} {found}. {RESTORE}")


def check_sizes(prefix: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors which go together are as long as each other, and their tokens as their lengths tell."""
    for names in TOGETHER:
        sizes = {prefix + name: len(tensors[prefix + name]) for name in names if prefix + name in tensors}
        if len(set(sizes.values())) > 1:
            raise wrong(f"{prefix}{names[0].partition('.')[0]}", f"have unequal lengths, {sizes}")
    flat = (("anchors", "tokens"), ("targets", "tokens"), ("names", "letters"), ("vocabulary", "spelling"))
    for part, name in flat:
        lengths = tensors.get(f"{prefix}{part}.{'spelling_' if part == 'vocabulary' else ''}lengths")
        if lengths is not None and int(lengths.long().sum()) != len(tensors[f"{prefix}{part}.{name}"]):
            found = f"has {len(tensors[f'{prefix}{part}.{name}'])} {name}, and its lengths tell of {int(lengths.long().sum())}"
            raise wrong(f"{prefix}{part}.{name}", found)
    starts = tensors.get(f"{prefix}anchors.start")
    if starts is not None and not bool((starts < tensors[f"{prefix}anchors.lengths"]).all()):
        raise wrong(f"{prefix}anchors.start", "lies behind the end of its anchor")
    emphasis = tensors.get(f"{prefix}relations.emphasis", ())
    if len(emphasis) and len(emphasis) != len(tensors[f"{prefix}relations.directions"]):
        raise wrong(f"{prefix}relations.emphasis", f"is of {len(emphasis)} features, and the directions are of others")
    cohort = tensors.get(f"{prefix}relations.cohort")
    if cohort is not None and len(tensors[f"{prefix}relations.mean"]) and len(cohort) < 2:
        raise wrong(
            f"{prefix}relations.cohort", f"has {len(cohort)} prompts to compare with, and must have two or more"
        )
