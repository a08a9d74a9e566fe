"""Train the open experts of an adapter, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ..routing.context import Route
from ..tuners.lemoe.model import LEMoEModel
from .activations import CachedBatch
from .arguments import EditingArguments


class EditingError(RuntimeError):
    """Training an edit failed; the model is as it was before."""

    def __init__(self, message: str, experts: list[int]):
        super().__init__(message)
        self.experts = experts


@dataclass
class TrainingOutcome:
    """Final loss, in nats a token, and number of steps of every expert trained."""

    losses: list[float]
    steps: list[int]


def train_experts(
    tuner: LEMoEModel, adapter_name: str, batches: Sequence[CachedBatch], arguments: EditingArguments
) -> TrainingOutcome:
    """
    Train every open expert on its own samples, in any of the batches, until their mean loss is low enough.

    The experts share the forward pass and nothing else: each stops by itself and keeps the weights of that moment, so
    that an edit turns out the same alone and beside others.

    Raises:
        EditingError: If a loss is not finite.
    """
    layers = tuner.lemoe_layers(adapter_name)
    config = tuner.peft_config[adapter_name]
    modules = [layer.lemoe_open[adapter_name] for layer in layers]
    groups = []
    for module in modules:
        for name, weight in module.weights().items():
            weight.requires_grad_(True)
            scale = weight.shape[1] ** -0.5 if arguments.relative and name != "out_proj" else 1.0
            groups.append({"params": [weight], "lr": arguments.learning_rate * scale})
    if config.routing == "kv_anchor":
        router = layers[0].lemoe_router[adapter_name].requires_grad_(True)
        groups.append(
            {"params": list(router.parameters()), "lr": 2e-3 if arguments.relative else arguments.learning_rate}
        )
    weights = [weight for group in groups for weight in group["params"]]
    # A weight decay would pull on experts that are done.
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    num = len(modules[0])
    own = [weight for module in modules for weight in module.weights().values()]
    final = [weight.detach().clone() for weight in own]
    losses, steps = [float("nan")] * num, [0] * num
    device = batches[0].start.device
    active = torch.ones(num, dtype=torch.bool, device=device)
    count = torch.bincount(torch.cat([batch.expert for batch in batches]), minlength=num).clamp(min=1)
    parts = list(batches)
    for step in range(arguments.max_steps + 1):
        per_expert, extra = torch.zeros(num, device=device), 0.0
        for part in parts:
            sample_losses, router_loss = step_losses(tuner, adapter_name, part)
            per_expert = per_expert.index_add(0, part.expert, sample_losses)
            extra = extra + router_loss
        per_expert = per_expert / count
        values = per_expert.detach()
        if not torch.isfinite(values).all():
            failed = (~torch.isfinite(values)).nonzero().flatten().tolist()
            raise EditingError(f"The loss became {values[failed[0]].item()} after {step} steps.", failed)
        done = active & ((values <= arguments.stop_loss) | (step == arguments.max_steps))
        for expert in done.nonzero().flatten().tolist():
            losses[expert], steps[expert] = values[expert].item(), step
        for kept, weight in zip(final, own, strict=True):
            kept[done] = weight.detach()[done]
        active = active & ~done
        if not active.any():
            break
        optimizer.zero_grad()
        (per_expert[active].sum() + extra).backward()
        optimizer.step()
        parts = [part.select(active[part.expert].nonzero().flatten()) for part in parts] if done.any() else parts
        parts = [part for part in parts if len(part.expert)]
    with torch.no_grad():
        for kept, weight in zip(final, own, strict=True):
            weight.copy_(kept)
    for weight in weights:
        weight.grad = None
    return TrainingOutcome(losses, steps)


def step_losses(tuner: LEMoEModel, adapter_name: str, batch: CachedBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Loss of each sample, of shape `(b,)`, and that of the router."""
    layer = tuner.lemoe_layers(adapter_name)[0]
    config, num_committed = tuner.peft_config[adapter_name], len(layer.lemoe_bank[adapter_name])
    if config.routing == "nearest_anchor":
        return batch.losses(batch.logits({adapter_name: batch.route(adapter_name, num_committed)})), 0.0
    router, bank = layer.lemoe_router[adapter_name], layer.lemoe_router_bank[adapter_name]
    learner = num_committed + batch.expert
    route: Route = router.route(config, bank, batch.anchors, None, True, learner)
    route.last_start = -1
    extra = 0.0
    if config.router_loss:
        extra = config.router_loss * router.loss(bank, batch.anchors, learner, config.router_replay)
    return batch.losses(batch.logits({adapter_name: route})), extra
