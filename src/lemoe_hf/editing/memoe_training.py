"""Train the mixture of a MEMoE adapter: all experts and the gate at once, on all edits of a call."""

from __future__ import annotations

import torch

from ..routing.mixture import Mixture
from ..tuners.memoe.model import MEMoEModel
from .activations import CachedBatch
from .arguments import EditingArguments
from .training import parts_of


def train_mixture(
    tuner: MEMoEModel, adapter_name: str, batch: CachedBatch, arguments: EditingArguments
) -> tuple[torch.Tensor, int]:
    """
    Train until all samples are learned, in passes over those that are not; once there are none, over all of them again.

    Args:
        batch ([`CachedBatch`]): Samples, with the `anchors` of their texts.

    Returns:
        The loss of each sample, of shape `(b,)`, by the weights as they are in the end, and the number of passes.

    Raises:
        FloatingPointError: If a loss is not finite.
    """
    layer = tuner.layers_of(adapter_name)[0]
    optimizer = optimizer_of(tuner, adapter_name, arguments)
    generator = torch.Generator().manual_seed(arguments.seed)
    every = torch.arange(len(batch.own), device=batch.own.device)
    latest = torch.full_like(every, torch.inf, dtype=torch.float32)
    rows, number = every, 0
    rates = [group["lr"] for group in optimizer.param_groups]
    while number < arguments.max_steps:
        # Steps become smaller to the end: edits that share their weights would go on pushing one another out.
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - number / arguments.max_steps)
        number += 1
        for part_rows in parts_of(batch, rows, arguments.batch_size, generator):
            part = batch.select(part_rows)
            acting = layer.noisy(adapter_name, acting_in(part), generator)
            losses = part.losses(part.logits({adapter_name: acting}))
            latest[part_rows] = losses.detach().float()
            check_finite(latest[part_rows], number)
            if (latest[part_rows] > arguments.stop_loss).any():
                (losses.mean() + (0.0 if acting.loss is None else acting.loss)).backward()
                optimizer.step()
                optimizer.zero_grad()
        unlearned = (latest > arguments.stop_loss).nonzero().flatten()
        if not len(unlearned) and len(rows) == len(every):
            break  # all of them were learned, and no step was taken
        rows = unlearned if len(unlearned) else every
    with torch.no_grad():
        for part_rows in parts_of(batch, every, None, generator):
            part = batch.select(part_rows)
            latest[part_rows] = part.losses(part.logits({adapter_name: acting_in(part)})).float()
    check_finite(latest, number)
    return latest, number


def check_finite(losses: torch.Tensor, number: int) -> None:
    broken = losses[~torch.isfinite(losses)]
    if len(broken):
        raise FloatingPointError(f"The loss became {broken[0].item()} in pass {number}.")


def acting_in(batch: CachedBatch) -> Mixture:
    """The mixture, in the columns of a step in which it acts."""
    column = torch.arange(batch.ids.shape[1], device=batch.ids.device).expand_as(batch.ids)
    row = torch.arange(len(batch.ids), device=batch.ids.device)[:, None].expand_as(batch.ids)
    acts = batch.valid & (column >= (batch.start - batch.first)[:, None])
    assert batch.anchors is not None
    return Mixture(row, column, acts, batch.ids.shape[1], batch.anchors)


def optimizer_of(tuner: MEMoEModel, adapter_name: str, arguments: EditingArguments) -> torch.optim.Optimizer:
    """AdamW over all experts and gates, which are marked trainable."""
    groups = []
    for layer in tuner.layers_of(adapter_name):
        gate = layer.part("gate", adapter_name).weight
        weights = layer.part("mixture", adapter_name).weights() | {"gate": gate}
        for name, weight in weights.items():
            weight.requires_grad_(True)
            scale = weight.shape[1] ** -0.5 if arguments.relative and name != "out_proj" else 1.0
            groups.append({"params": [weight], "lr": arguments.learning_rate * scale})
    return torch.optim.AdamW(groups, betas=arguments.betas, weight_decay=0.0)
