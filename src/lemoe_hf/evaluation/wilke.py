r"""
WilKE's protocol: edit a fact, measure, edit it back, and see what is left of everything else (2402.10987, section 5).

An ideal editor ends where it began: each fact is edited to a new target and then, by another edit, to its true one again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from torch import nn
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from ..editing.training import EditingError
from .forced import teacher_forced
from .metrics import mean


ZERO = 1e-4  # what stands for a score of 0 in the harmonic mean


class RollBackEditor(Protocol):
    """An editor that tells where each edit went, such as `RankOneEditor`."""

    tokenizer: PreTrainedTokenizerBase

    @property
    def model(self) -> nn.Module: ...

    def edit(self, edits: Edit, layer: int | None = None) -> Sequence[Any]: ...


def known_facts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit], batch_size: int = 16
) -> list[Edit]:
    """Those edits whose `ground_truth` a model answers: every token of it is the likeliest behind the prompt."""
    told = [edit for edit in edits if edit.ground_truth and edit.ground_truth.strip()]
    return [
        edit
        for edit, known in zip(told, answered(model, tokenizer, originals(told), batch_size), strict=True)
        if known
    ]


def roll_back(
    editor: RollBackEditor,
    edits: Sequence[Edit],
    untouched: Sequence[Edit],
    at: Sequence[int] = (1, 4, 16, 64, 256, 512, 1024),
    batch_size: int = 16,
    done: Callable[[dict[str, float]], None] = lambda row: None,
) -> list[dict[str, float]]:
    """
    Edit facts one by one, each with its roll-back, and measure after so many of them.

    A fact is told as such if every token of its answer is the likeliest one. At `n` facts:

    An edit, or a roll-back, that the editor refuses (`EditingError`) is not made, and counts for what that leaves.

    | measure | what it is the share of |
    |---|---|
    | `es` | edits that are answered right after they were made, of steps 1 to n |
    | `gs`, `ls` | rephrasings with the new target, and locality prompts with their own answer, at the same moments |
    | `ers` | the first n facts whose original answer is given after the n-th roll-back |
    | `ors` | facts that were never edited whose original answer is given then |
    | `s` | their harmonic mean, of those that the edits have what it takes for; 0 counts as 1e-4 |

    Args:
        editor ([`RollBackEditor`]): It is left with two edits a fact.
        edits (`Sequence` of [`Edit`]): Facts that the model knows ([`known_facts`]), with their `ground_truth`.
        untouched (`Sequence` of [`Edit`]): Facts that the model knows and that are not edited.
        at (`Sequence[int]`, *optional*): After how many facts to take the last two measures.
        batch_size (`int`, *optional*, defaults to 16): Prompts at once.
        done (`Callable`, *optional*): Called with each row as it comes.

    Returns:
        For each number of facts, with `n` and the measures.

    Raises:
        ValueError: If a fact does not tell its `ground_truth`, or there is nothing to be measured.
    """
    if not edits or not untouched:
        raise ValueError(
            f"The protocol needs facts to edit and others to leave; got {len(edits)} and {len(untouched)}."
        )
    for edit in (*edits, *untouched):
        if not (edit.ground_truth and edit.ground_truth.strip()):
            raise ValueError(f"{edit.prompt!r} has no `ground_truth` to go back to.")
    scores: list[dict[str, list[bool]]] = []
    rows = []
    for n, edit in enumerate(edits, 1):
        with suppress(EditingError):  # what an editor refuses is measured as it is left
            made = None
            (made,) = editor.edit(edit)
        scores.append(dict(after_edit(editor, edit, batch_size)))
        if made is not None:
            with suppress(EditingError):
                editor.edit(replace(edit, target_new=str(edit.ground_truth)), layer=made.layer)
        if n in at or n == len(edits):
            measures = {
                name: mean(shares)
                for name in ("es", "gs", "ls")
                if (shares := [mean(s[name]) for s in scores if s[name]])
            }
            for name, facts in (("ers", edits[:n]), ("ors", untouched)):
                measures[name] = mean(answered(editor.model, editor.tokenizer, originals(facts), batch_size))
            rows.append({"n": n, **measures, "s": harmonic_mean(list(measures.values()))})
            done(rows[-1])
    return rows


def after_edit(editor: RollBackEditor, edit: Edit, batch_size: int) -> Iterator[tuple[str, list[bool]]]:
    """Which prompts of each kind are answered now."""
    locality = [(prompt, answer) for prompt, answer in edit.probes("locality") if answer]
    rephrased = [(prompt, edit.target_new) for prompt, _ in edit.probes("rephrase")]
    for name, probes in (("es", [(edit.prompt, edit.target_new)]), ("gs", rephrased), ("ls", locality)):
        yield name, answered(editor.model, editor.tokenizer, probes, batch_size)


def originals(facts: Sequence[Edit]) -> list[tuple[str, str]]:
    return [(fact.prompt, str(fact.ground_truth)) for fact in facts]


def answered(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, probes: Sequence[tuple[str, str]], batch_size: int
) -> list[bool]:
    """Whether each answer's every token is the likeliest behind its prompt."""
    if not probes:
        return []
    prompts, answers = zip(*probes, strict=True)
    return [share == 1 for share in teacher_forced(model, tokenizer, prompts, answers, batch_size)]


def harmonic_mean(values: Sequence[float]) -> float:
    """
    >>> harmonic_mean([1.0, 0.5])
    0.6666666666666666
    """
    return len(values) / sum(1 / (value or ZERO) for value in values)
