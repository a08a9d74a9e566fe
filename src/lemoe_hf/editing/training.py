"""Train the open experts of an adapter, side by side."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..routing.route import Route
from ..tuners.lemoe.model import LEMoEModel
from .activations import CachedBatch
from .arguments import EditingArguments


# Rows of one forward and backward pass.
SAMPLES_AT_ONCE = 64
# What a nat of an edit's own prompt counts, beside one of its other surroundings, until it is learned.
FIRST_OF_ALL = 1000.0


class EditingError(RuntimeError):
    """Training an edit failed; the model is as it was before."""

    def __init__(self, message: str, experts: list[int]):
        super().__init__(message)
        self.experts = experts

    def __reduce__(self):  # it goes from one process to the others
        return type(self), (str(self), self.experts)


@dataclass
class TrainingOutcome:
    """Final loss, in nats a token, and number of steps of every expert trained."""

    losses: list[float]
    steps: list[int]


def train_experts(
    tuner: LEMoEModel, adapter_name: str, batch: CachedBatch, arguments: EditingArguments
) -> TrainingOutcome:
    """
    Train every open expert on its own samples until the loss of each of them is low enough.

    The experts share the forward pass and nothing else: each stops by itself and keeps the weights of that moment, so
    that an edit turns out the same alone and beside others. One that is never done keeps its best weights: those with the
    lowest loss of its own prompts, or, once these are learned, of all samples.

    The edits' own prompts go first. Once an expert knows them, all of its samples are looked at, and from then on those
    that are not learned yet are trained, until all are at once: most surroundings come with the first few.

    An expert of several edits takes its steps on a few samples each, drawn at random: two hundred edits are learned in a
    fifth of the passes that steps on all of them need.

    Raises:
        EditingError: If a loss is not finite.
    """
    modules = [layer.lemoe_open[adapter_name] for layer in tuner.lemoe_layers(adapter_name)]
    alone = tuner.peft_config[adapter_name].edits_per_expert == 1
    optimizer = optimizer_of(tuner, adapter_name, arguments)
    generator = torch.Generator().manual_seed(arguments.seed)

    num, expert = len(modules[0]), batch.expert
    own = [weight for module in modules for weight in module.weights().values()]
    final = [weight.detach().clone() for weight in own]
    losses, best = (torch.full((num,), value, device=expert.device) for value in (torch.nan, torch.inf))
    steps = [0] * num
    active = torch.ones(num, dtype=torch.bool, device=expert.device)
    pending = batch.own
    latest = torch.zeros_like(expert, dtype=torch.float32)
    count, own_count = torch.bincount(expert, minlength=num), torch.bincount(expert[batch.own], minlength=num)
    for step in range(arguments.max_steps + 1):
        rows = pending.nonzero().flatten()
        run = torch.bincount(expert[rows], minlength=num)
        optimizer.zero_grad()
        if alone:  # texts of about one length: a step has little padding, and its memory a bound
            parts = rows[batch.num_columns[rows].argsort(stable=True)].split(SAMPLES_AT_ONCE)
        else:
            parts = rows[torch.randperm(len(rows), generator=generator).to(rows.device)].split(arguments.batch_size)
        for part_rows in parts:
            part = batch.select(part_rows)
            sample_losses, router_loss = step_losses(tuner, adapter_name, part)
            latest[part_rows] = sample_losses.detach().float()
            share = len(part_rows) / len(rows)
            ((sample_losses / run[part.expert]).sum() + share * router_loss).backward()
            # The weights of a pass that finds all learned, and of the last one, are to be those that it measured.
            if not alone and step < arguments.max_steps and (latest[part_rows] > arguments.stop_loss).any():
                optimizer.step()
                optimizer.zero_grad()
        broken = expert[~torch.isfinite(latest)].unique().tolist()
        if broken:
            value = latest[~torch.isfinite(latest)][0].item()
            raise EditingError(f"The loss became {value} after {step} steps.", broken)
        unlearned = torch.bincount(expert[latest > arguments.stop_loss], minlength=num) > 0
        learned = ~unlearned & (run == count)
        mean = torch.zeros(num, device=latest.device).index_add(0, expert, latest) / count.clamp(min=1)
        of_own = torch.zeros(num, device=latest.device).index_add(0, expert[batch.own], latest[batch.own])
        score = mean + FIRST_OF_ALL * (of_own / own_count.clamp(min=1) - arguments.stop_loss).clamp(min=0)
        stayed = alone or step == arguments.max_steps  # the weights, during this pass
        keeps = active & (learned | ((run == count) & (score < best) & stayed))
        best, losses = torch.where(keeps, score, best), torch.where(keeps, mean, losses)
        for kept, weight in zip(final, own, strict=True):
            kept[keeps] = weight.detach()[keeps]
        done = active & (learned | (step == arguments.max_steps))
        for i in done.nonzero().flatten().tolist():
            steps[i] = step
        active = active & ~done
        if not active.any():
            break
        if alone:
            optimizer.step()
        pending = active[expert] & ((latest > arguments.stop_loss) | ~unlearned[expert])
        if step == arguments.max_steps - 1:
            pending = active[expert]
    with torch.no_grad():
        for kept, weight in zip(final, own, strict=True):
            weight.copy_(kept)
    optimizer.zero_grad()
    return TrainingOutcome(losses.tolist(), steps)


def optimizer_of(tuner: LEMoEModel, adapter_name: str, arguments: EditingArguments) -> torch.optim.Optimizer:
    """AdamW over the open experts, and the router if it is trained, all of which it sets to be trained."""
    layers = tuner.lemoe_layers(adapter_name)
    groups = []
    for layer in layers:
        for name, weight in layer.lemoe_open[adapter_name].weights().items():
            weight.requires_grad_(True)
            scale = weight.shape[1] ** -0.5 if arguments.relative and name != "out_proj" else 1.0
            groups.append({"params": [weight], "lr": arguments.learning_rate * scale})
    if tuner.peft_config[adapter_name].routing == "kv_anchor":
        router = layers[0].lemoe_router[adapter_name].requires_grad_(True)
        learning_rate = 2e-3 if arguments.relative else arguments.learning_rate
        groups.append({"params": list(router.parameters()), "lr": learning_rate})
    # A weight decay would pull on experts that are done.
    return torch.optim.AdamW(groups, betas=arguments.betas, weight_decay=0.0)


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
