"""What the edited matrix must put out at an edit's subject for its target to follow (ROME, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .arguments import RankOneArguments
from .tail import Tail


def optimise_value(tail: Tail, arguments: RankOneArguments) -> tuple[torch.Tensor, int]:
    r"""
    Find a vector $\delta$ that, added at the subject of every text, makes the target likely:

    $$\text{mean NLL} + \text{kl_factor} \cdot KL + \text{norm_penalty} \cdot ||\delta|| / ||v_0||^2$$

    over the prompts, with the divergence behind the subject's essence, within a ball of `clamp` norms of the value $v_0$.

    Returns:
        The vector, of shape `(d,)` in single precision, and the number of steps.
    """
    delta = torch.zeros_like(tail.value, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=arguments.learning_rate)
    size, most = tail.value.norm().square(), arguments.clamp * tail.value.norm()
    essence = tail.base[-1].log_softmax(-1)
    step = 0
    with torch.enable_grad():
        for step in range(arguments.max_steps):
            logits = tail.logits(tail.at_subject(delta))
            loss = losses(tail, logits).mean()
            now = logits[-1].log_softmax(-1)
            loss = loss + arguments.kl_factor * F.kl_div(now, essence, log_target=True, reduction="sum")
            loss = loss + arguments.norm_penalty * torch.linalg.vector_norm(delta) / size
            if loss < arguments.stop_loss or step == arguments.max_steps - 1:
                break
            (delta.grad,) = torch.autograd.grad(loss, [delta])
            optimiser.step()
            with torch.no_grad():
                delta.mul_((most / delta.norm()).clamp(max=1))
    return delta.detach(), step


def losses(tail: Tail, logits: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the target behind each prompt."""
    loss = F.cross_entropy(logits[:-1], tail.target, reduction="none")
    total = torch.zeros(int(tail.row[-1]) + 1, device=loss.device).index_add(0, tail.row, loss)
    return total / torch.bincount(tail.row)
