"""What is done to a forward pass while it runs: parts of it recorded, left out, or put in from what is known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

from ..generation import evaluating, pad_right
from ..routing.context import RoutingContext, first_tensor


PROMPTS_AT_ONCE = 64


class Enough(Exception):
    """The last module that is looked at has been reached; what lies above it need not run."""


@torch.no_grad()
def recorded(
    root: nn.Module,
    context: RoutingContext,
    modules: Sequence[nn.Module],
    prompts: Sequence[list[int]],
    pad: int,
    outputs: bool = False,
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, list[torch.Tensor]]]:
    """
    Run the base model on prompts as far as the last of some modules, and tell what entered each of them.

    Args:
        root (`nn.Module`): The model, with its LEMoE layers.
        context ([`RoutingContext`]): Of that model.
        modules (`Sequence[nn.Module]`): The modules, in the order in which they run.
        prompts (`Sequence[list[int]]`): Tokens.
        pad (`int`): The padding token.
        outputs (`bool`, *optional*, defaults to `False`): What left the modules, instead.

    Yields:
        For some prompts at a time, the shortest first: which they are, their tokens and their mask of shape `(b, t)`, and a
        tensor of shape `(b, t, d)` for each module.
    """
    device = root.get_input_embeddings().weight.device
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for first in range(0, len(order), PROMPTS_AT_ONCE):
        rows = order[first : first + PROMPTS_AT_ONCE]
        ids, mask = pad_right([prompts[i] for i in rows], pad, device)
        found: list[torch.Tensor] = []

        def keep(module: nn.Module, states: torch.Tensor, found=found) -> None:
            if not context.is_imposed:
                return
            found.append(states.to(device))
            if module is modules[-1]:
                raise Enough

        def before(module: nn.Module, args: tuple, kwargs: dict, keep=keep) -> None:
            keep(module, first_tensor(args, kwargs))

        def after(module: nn.Module, args: tuple, output: Any, keep=keep) -> None:
            keep(module, output if isinstance(output, torch.Tensor) else output[0])

        with ExitStack() as stack:
            stack.enter_context(evaluating(root))
            stack.enter_context(context.imposed({}))
            for module in modules:
                hook = (
                    module.register_forward_hook(after)
                    if outputs
                    else module.register_forward_pre_hook(before, with_kwargs=True)
                )
                stack.callback(hook.remove)
            with suppress(Enough):
                root(input_ids=ids, attention_mask=mask, use_cache=False)
        yield rows, ids, mask, found


# Other threads may generate on the model in the meantime: with a context, what is done here is done in passes of this thread
# alone, on which an editor has imposed what acts. A model without adapters has no context.


def is_ours(context: RoutingContext | None) -> bool:
    return context is None or context.is_imposed


@contextmanager
def replaced_forward(module: nn.Module, output, context: RoutingContext | None = None):
    """Let a module return what is known already."""
    own, usual = module.__dict__.get("forward"), module.forward
    module.forward = lambda *args, **kwargs: output if is_ours(context) else usual(*args, **kwargs)
    try:
        yield
    finally:
        del module.forward
        if own is not None:  # accelerate's hooks replace `forward` in the same way
            module.forward = own


@contextmanager
def seeing_only(module: nn.Module, part, context: RoutingContext | None = None):
    """Let a module, such as the language modelling head, see only that part of what it is given, as an index tells it."""

    def see(module: nn.Module, args: tuple) -> tuple:
        return (args[0][part], *args[1:]) if is_ours(context) else args

    hook = module.register_forward_pre_hook(see)
    try:
        yield
    finally:
        hook.remove()
