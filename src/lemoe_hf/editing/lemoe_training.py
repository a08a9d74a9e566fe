"""Train the open experts of a LEMoE adapter, side by side."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..routing.kv_anchor import examples
from ..tuners.lemoe.model import LEMoEModel
from .activations import CachedBatch
from .arguments import EditingArguments
from .training import EditingError, TrainingOutcome, parts_of


# What a nat of an edit's own prompt counts, beside one of its other surroundings, until it is learned.
FIRST_OF_ALL = 1000.0
# Keys and projections have no scale that a learning rate could be relative to.
ROUTER_LEARNING_RATE = 2e-3
# Of the router alone. Prompts whose anchors are alike may have no key that tells them apart.
MOST_ROUTER_STEPS = 500


class BestWeights:
    """
    Weights of experts that are kept while training goes on.

    Args:
        weights (`list` of `torch.Tensor`, each of shape `(n, ...)`): Those in training.
    """

    def __init__(self, weights: list[torch.Tensor]):
        self.weights, self.kept = weights, [weight.detach().clone() for weight in weights]
        num, device = len(weights[0]), weights[0].device
        self.score, self.losses = (torch.full((num,), value, device=device) for value in (torch.inf, torch.nan))

    def keep(self, which: torch.Tensor, score: torch.Tensor, losses: torch.Tensor) -> None:
        """Keep the weights as they are now of those `which`, of shape `(n,)`."""
        self.score, self.losses = torch.where(which, score, self.score), torch.where(which, losses, self.losses)
        for kept, weight in zip(self.kept, self.weights, strict=True):
            kept[which] = weight.detach()[which]

    @torch.no_grad()
    def restore(self) -> None:
        for kept, weight in zip(self.kept, self.weights, strict=True):
            weight.copy_(kept)


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
    modules = [layer.opened(adapter_name) for layer in tuner.layers_of(adapter_name)]
    alone = tuner.peft_config[adapter_name].edits_per_expert == 1
    optimizer = optimizer_of(tuner, adapter_name, arguments)
    generator = torch.Generator().manual_seed(arguments.seed)

    num, expert = len(modules[0]), batch.expert
    best = BestWeights([weight for module in modules for weight in module.weights().values()])
    steps = [0] * num
    active = torch.ones(num, dtype=torch.bool, device=expert.device)
    pending = batch.own
    latest = torch.zeros_like(expert, dtype=torch.float32)
    count, own_count = torch.bincount(expert, minlength=num), torch.bincount(expert[batch.own], minlength=num)
    for step in range(arguments.max_steps + 1):
        is_last = step == arguments.max_steps
        rows = pending.nonzero().flatten()
        run = torch.bincount(expert[rows], minlength=num)
        optimizer.zero_grad()
        for part_rows in parts_of(batch, rows, None if alone else arguments.batch_size, generator):
            part = batch.select(part_rows)
            sample_losses, router_loss = step_losses(tuner, adapter_name, part)
            latest[part_rows] = sample_losses.detach().float()
            share = len(part_rows) / len(rows)
            ((sample_losses / run[part.expert]).sum() + share * router_loss).backward()
            # The weights of a pass that finds all learned, and of the last one, are to be those that it measured.
            if not alone and not is_last and (latest[part_rows] > arguments.stop_loss).any():
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
        is_measured = (run == count) & (alone or is_last)  # all samples, by the weights as they are now
        best.keep(active & (learned | (is_measured & (score < best.score))), score, mean)

        done = active & (learned | is_last)
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
    best.restore()
    optimizer.zero_grad()
    config = tuner.peft_config[adapter_name]
    if config.routing == "kv_anchor" and config.router_loss and config.train_route == "forced":
        finish_router(tuner, adapter_name, batch, optimizer)
    return TrainingOutcome(best.losses.tolist(), steps)


def finish_router(tuner: LEMoEModel, adapter_name: str, batch: CachedBatch, optimizer: torch.optim.Optimizer) -> None:
    """Train the router alone, which takes no pass of the model, until every prompt finds its own expert."""
    layer = tuner.layers_of(adapter_name)[0]
    router, bank = layer.keys(adapter_name), layer.router_bank(adapter_name)
    learner = len(layer.bank(adapter_name)) + batch.expert
    anchors, targets = examples(batch.anchors, learner, batch.replayed)
    for _ in range(MOST_ROUTER_STEPS):
        logits = router.logits(bank, anchors)
        if (logits.argmax(-1) == targets).all():
            break
        F.cross_entropy(logits, targets).backward()
        optimizer.step()
        optimizer.zero_grad()


def optimizer_of(tuner: LEMoEModel, adapter_name: str, arguments: EditingArguments) -> torch.optim.Optimizer:
    """AdamW over the open experts, and the router if it is trained; marks them trainable."""
    layers = tuner.layers_of(adapter_name)
    groups = []
    for layer in layers:
        for name, weight in layer.opened(adapter_name).weights().items():
            weight.requires_grad_(True)
            scale = weight.shape[1] ** -0.5 if arguments.relative and name != "out_proj" else 1.0
            groups.append({"params": [weight], "lr": arguments.learning_rate * scale})
    if tuner.peft_config[adapter_name].routing == "kv_anchor":
        router = layers[0].keys(adapter_name).requires_grad_(True)
        learning_rate = ROUTER_LEARNING_RATE if arguments.relative else arguments.learning_rate
        groups.append({"params": list(router.parameters()), "lr": learning_rate})
    # A weight decay would pull on experts that are done.
    return torch.optim.AdamW(groups, betas=arguments.betas, weight_decay=0.0)


def step_losses(tuner: LEMoEModel, adapter_name: str, batch: CachedBatch) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Loss of each sample, of shape `(b,)`, and that of the router."""
    layer = tuner.layers_of(adapter_name)[0]
    config, num_committed = tuner.peft_config[adapter_name], len(layer.bank(adapter_name))
    if config.routing == "nearest_anchor":
        return batch.losses(batch.logits({adapter_name: batch.acting(num_committed)})), 0.0
    router, bank = layer.keys(adapter_name), layer.router_bank(adapter_name)
    learner = num_committed + batch.expert
    acting = batch.acting(num_committed, *router.learn(config, bank, batch.anchors, learner))
    extra = 0.0
    if config.router_loss:
        extra = config.router_loss * router.loss(bank, batch.anchors, learner, batch.replayed)
    return batch.losses(batch.logits({adapter_name: acting})), extra
