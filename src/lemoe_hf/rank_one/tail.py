"""Run what lies above an edited matrix again and again, at the price of what lies above it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..editing.hooks import replaced_forward, seeing_only
from ..generation import evaluating, pad_right
from ..structure import find_stack
from .contexts import EditTexts


Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of a matrix's input and output, its output


class Tail:
    """
    Texts of an edit, with all that lies below the edited layer computed once.

    Axes: `b` texts (prompts, then the essence), `t` columns, `m` and `d` inputs and outputs of the matrix, `n` columns at
    which logits are asked for, `v` vocabulary.

    Layers below are not run again if that gives the same logits, which is tried; where layers hand each other more than hidden
    states, the whole model runs.

    Args:
        root ([`~transformers.PreTrainedModel`]): The model.
        name (`str`): Of the matrix that is edited, in the layer `layer`.
        layer (`int`): Its index.
        texts ([`EditTexts`]): To be run.

    Attributes:
        value (`torch.Tensor` of shape `(d,)`): What the matrix puts out at the subject of the bare prompt.
        target (`torch.Tensor` of shape `(n - 1,)`): Target tokens, all texts one after the other; the essence has none.
        row (`torch.Tensor` of shape `(n - 1,)`): The text of each.
        base (`torch.Tensor` of shape `(n, v)`): Logits without a change.
    """

    def __init__(self, root: PreTrainedModel, name: str, layer: int, texts: EditTexts):
        self.root, self.matrix = root, root.get_submodule(name)
        _, stack = find_stack(root)
        self.below = list(stack[:layer])
        device: Any = root.get_input_embeddings().weight.device
        rows = [prompt.ids + target[:-1] for prompt, target in zip(texts.prompts, texts.targets, strict=True)]
        rows.append(texts.essence.ids)
        self.ids, self.mask = pad_right(rows, 0, device)
        self.subject = torch.tensor([row.column for row in (*texts.prompts, texts.essence)], device=device)
        self.is_asked = torch.zeros_like(self.ids, dtype=torch.bool)
        for i, (prompt, target) in enumerate(zip(texts.prompts, texts.targets, strict=True)):
            self.is_asked[i, len(prompt.ids) - 1 : len(prompt.ids) - 1 + len(target)] = True
        self.is_asked[-1, len(texts.essence.ids) - 1] = True
        self.row = self.is_asked[:-1].nonzero()[:, 0]
        self.target = torch.tensor([token for target in texts.targets for token in target], device=device)
        self._known: list[Any] = []
        self._run_below()

    @torch.no_grad()
    def _run_below(self) -> None:
        """One whole pass, and the same from what it leaves below the layer."""
        seen: dict[str, Any] = {}

        def keep_value(module: nn.Module, args: Any, output: torch.Tensor) -> None:
            seen["value"] = output.reshape(*self.ids.shape, -1)[0, self.subject[0]].float()

        with ExitStack() as hooks:
            hooks.callback(self.matrix.register_forward_hook(keep_value).remove)
            if self.below:
                keep = self.below[-1].register_forward_hook(lambda module, args, output: seen.update(below=output))
                hooks.callback(keep.remove)
            self.base = self.logits()
        self.value: torch.Tensor = seen["value"]
        if self.below:
            self._known = [seen["below"]]
            try:
                is_same = torch.allclose(self.logits(), self.base, rtol=1e-4, atol=1e-4 * float(self.base.abs().max()))
            except (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError):
                is_same = False  # a layer wants more than what the one below it returns
            if not is_same:
                self._known = []

    def logits(self, change: Change | None = None) -> torch.Tensor:
        """Logits of shape `(n, v)`, with a change to what the matrix puts out."""
        head = self.root.get_output_embeddings()
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.root))
            if change is not None:
                hook = self.matrix.register_forward_hook(lambda module, args, output: change(args[0], output))
                stack.callback(hook.remove)
            for block in self.below if self._known else ():
                stack.enter_context(replaced_forward(block, self._known[0]))
            if head is not None:
                stack.enter_context(seeing_only(head, self.is_asked))
            logits = self.root(input_ids=self.ids, attention_mask=self.mask, use_cache=False).logits
        return (logits if head is not None else logits[self.is_asked]).float()

    def at_subject(self, delta: torch.Tensor) -> Change:
        """The change that adds a vector of shape `(d,)` at the last token of every text's subject."""
        rows = torch.arange(len(self.ids), device=self.ids.device)

        def add(inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
            changed = output.reshape(*self.ids.shape, -1).clone()
            changed[rows, self.subject] += delta.to(changed)
            return changed.reshape(output.shape)

        return add


def rank_one(left: torch.Tensor, right: torch.Tensor) -> Change:
    """The change of a matrix by `right` (of shape `(d,)`) times `left` (of shape `(m,)`)."""
    return lambda inputs, output: output + (inputs @ left.to(inputs))[..., None] * right.to(output)
