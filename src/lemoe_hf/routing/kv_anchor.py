r"""
KV anchor routing (LEMoE, section 4.2), with switches for its three hazards.

The anchor of a prompt is the mean of its input embeddings, e. A projection makes of it v = W_up SiLU(W_down e), every expert
has a learned key k_i, and the gates are the top-k of softmax_i(k_i v). Left as published it has three hazards: the softmax
dilutes an expert as others come (`gate_value`), a projection that keeps training moves the anchors of old prompts
(`projection`), and a new key can lose every prompt to an old expert and never train (`train_route`, `router_loss`).

Axes: `b` batch, `e` experts, `s` slots, `d` hidden size, `p` width of the projection, `n` stored anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from .anchors import Anchors
from .frozen import Frozen
from .passes import Acting, Batch
from .text import Mixed


# Cosine from which on two anchors are those of one prompt: the mean of the same embeddings, in another order of adding.
SAME = 1 - 1e-5


class RouterConfig(Protocol):
    """What a router asks of an adapter's config."""

    deferral: bool
    top_k: int
    anchor_dim: int | None
    gate_value: str
    projection: str
    train_route: str
    num_experts: int
    num_open_experts: int
    num_router_anchors: int


class KVRouter(Frozen):
    """
    Keys and projections: of the committed experts as buffers, of the experts in training as parameters.

    The committed half also holds the anchors of earlier edits, `anchors` (n, d) of the experts `anchor_expert` (n).

    Args:
        num_keys (`int`): Experts.
        num_projections (`int`): 0, 1 where it is shared, or one an expert.
        num_anchors (`int`): Anchors kept for replay.
        hidden_size (`int`): d.
        anchor_dim (`int`): p.
        trainable (`bool`): Parameters rather than buffers.
    """

    def __init__(
        self, num_keys: int, num_projections: int, num_anchors: int, hidden_size: int, anchor_dim: int, trainable: bool
    ):
        super().__init__()
        shapes = {
            "keys": (num_keys, hidden_size),
            "down": (num_projections, hidden_size, anchor_dim),
            "up": (num_projections, anchor_dim, hidden_size),
        }
        for name, shape in shapes.items():
            weight = torch.zeros(shape)
            if trainable:
                self.register_parameter(name, nn.Parameter(weight))
            else:
                self.register_buffer(name, weight)
        if not trainable:
            self.register_buffer("anchors", torch.zeros(num_anchors, hidden_size))
            self.register_buffer("anchor_expert", torch.zeros(num_anchors, dtype=torch.int32))

    @classmethod
    def pair(cls, config: RouterConfig, hidden_size: int) -> tuple[KVRouter, KVRouter]:
        """The open and the committed half of an adapter's router, of the sizes that its config tells."""
        width = config.anchor_dim or max(hidden_size // 4, 1)
        num, num_open = config.num_experts, config.num_open_experts
        committed, training = {
            "shared": (0, 1),
            "shared_frozen": (1, 0) if num else (0, 1),
            "per_expert": (num, num_open),
        }[config.projection]
        open_half = cls(num_open, training, 0, hidden_size, width, True)
        open_half.reset_parameters(seed=num)
        return open_half, cls(num, committed, config.num_router_anchors, hidden_size, width, False)

    @torch.no_grad()
    def reset_parameters(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for weight in (self.keys, self.down, self.up):
            if weight.device.type != "meta" and weight.numel():
                fan_in = weight.shape[1]
                weight.copy_(torch.randn(weight.shape, generator=generator) * fan_in**-0.5)

    def freeze_into(self, bank: KVRouter, config: RouterConfig) -> None:
        """Append the keys, and the projections that are theirs, to the committed half."""
        bank.keys = torch.cat([bank.keys, self.keys.detach().to(bank.keys)])
        if config.projection == "per_expert" or (config.projection == "shared_frozen" and not len(bank.down)):
            bank.down = torch.cat([bank.down, self.down.detach().to(bank.down)])
            bank.up = torch.cat([bank.up, self.up.detach().to(bank.up)])

    def opened(self, num: int, num_committed: int, config: RouterConfig) -> KVRouter:
        """A new open half for `num` experts; a projection that keeps training is kept."""
        projections = {"shared": 1, "shared_frozen": int(num_committed == 0), "per_expert": num}[config.projection]
        new = KVRouter(num, projections, 0, self.keys.shape[1], self.down.shape[2], True)
        new.reset_parameters(seed=num_committed)
        new.to(self.keys.device, self.keys.dtype)
        if config.projection == "shared":
            new.down, new.up = self.down, self.up
        return new.requires_grad_(self.keys.requires_grad)

    def remember(self, anchors: torch.Tensor, expert: torch.Tensor) -> None:
        """
        Keep anchors of shape `(n, d)` of the experts of shape `(n,)`, to be replayed when later experts train: in the place of
        those of the same prompts, which now are another expert's.
        """
        kept, experts = self.others(anchors)
        self.anchors = torch.cat([kept, anchors.detach().to(kept)])
        self.anchor_expert = torch.cat([experts, expert.to(experts)])

    def others(self, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored anchors that are not among those of shape `(b, d)`, but for the last bits; and their experts."""
        cosine = F.normalize(self.anchors, dim=-1) @ F.normalize(anchors.to(self.anchors), dim=-1).T
        kept = ~(cosine > SAME).any(1)
        return self.anchors[kept], self.anchor_expert[kept]

    def forget(self, expert: int) -> None:
        """Give up the anchors of an expert."""
        keep = self.anchor_expert != expert
        self.anchors, self.anchor_expert = self.anchors[keep], self.anchor_expert[keep]

    @torch.no_grad()
    def withdraw(self, expert: int) -> None:
        """Let no prompt find an expert any more. Others are named by their place: it stays, with a key of zeros."""
        self.keys = self.keys.index_fill(0, torch.tensor([expert], device=self.keys.device), 0)
        self.forget(expert)

    def logits(self, bank: KVRouter, anchors: torch.Tensor) -> torch.Tensor:
        """Scores of shape `(b, e)` of all experts, committed ones first, for anchors of shape `(b, d)`."""
        keys = torch.cat([bank.keys.to(self.keys), self.keys])
        scores = self._scores(bank, keys, anchors.to(keys.dtype))
        return scores.masked_fill((keys == 0).all(-1), torch.finfo(scores.dtype).min)

    def _scores(self, bank: KVRouter, keys: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        down = torch.cat([bank.down.to(self.down), self.down])
        up = torch.cat([bank.up.to(self.up), self.up])
        if len(down) == 1:
            values = F.silu(anchors @ down[0]) @ up[0]  # b d
            return values @ keys.T
        values = torch.einsum("epd,bep->bed", up, F.silu(torch.einsum("bd,edp->bep", anchors, down)))
        return torch.einsum("bed,ed->be", values, keys)

    @staticmethod
    def anchors_of(root: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """Mean input embedding of every prompt, of shape `(b, d)`; `ids` are negative outside the prompt."""
        is_prompt = (ids >= 0)[..., None]
        embeds = root.get_input_embeddings()(ids.clamp(min=0))
        return (embeds * is_prompt).sum(1) / is_prompt.sum(1).clamp(min=1)

    def loss(
        self,
        bank: KVRouter,
        anchors: torch.Tensor,
        experts: torch.Tensor,
        replayed: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Cross-entropy of anchors towards their `experts`, and of those of earlier edits towards theirs."""
        anchors, experts = examples(anchors, experts, replayed)
        return F.cross_entropy(self.logits(bank, anchors), experts)

    def gates(
        self,
        config: RouterConfig,
        bank: KVRouter,
        anchors: torch.Tensor,
        num_serving: int,
        forced: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts among the first `num_serving`, or those `forced` of shape `(b,)`, and their gates, of shape `(b, s)`."""
        weights = self.logits(bank, anchors)[:, :num_serving].softmax(-1)
        if forced is None:
            gates, experts = weights.topk(min(config.top_k, num_serving), -1)
        else:
            experts = forced[:, None]
            gates = weights.gather(1, experts)
        if config.gate_value == "one":
            gates = gates / gates.sum(-1, keepdim=True)
        return experts, gates

    def serve(
        self,
        config: RouterConfig,
        bank: KVRouter,
        batch: Batch,
        root: nn.Module,
        anchors: Anchors | None,
        threshold: float | None,
        uses_open: bool,
    ) -> Acting | None:
        """
        Route the texts of a pass by the mean embeddings of their prompts. A text keeps its route while it is continued, and a
        longer prompt gets another one.

        Args:
            config ([`LEMoEConfig`]): Of the adapter.
            bank ([`KVRouter`]): The committed half.
            batch ([`Batch`]): The pass.
            root (`nn.Module`): The model, for its input embeddings.
            anchors ([`Anchors`], *optional*): Of all edits; texts without any are left to the base model.
            threshold (`float`, *optional*): Replaces those of the anchors.
            uses_open (`bool`): Whether the experts in training take part, because they hold edits.
        """
        num_committed = len(bank.keys)
        num_serving = num_committed + (len(self.keys) if uses_open else 0)
        if num_serving == 0:
            return None
        asked = [(text, prompt) for text, prompt in zip(batch.texts, prompts_of(batch), strict=True) if prompt]
        if asked:
            ids = padded([prompt for _, prompt in asked])
            is_in = [True] * len(asked) if anchors is None else [bool(row) for row in anchors.find(ids, threshold)]
            found = self.gates(config, bank, self.anchors_of(root, ids.to(batch.ids.device)), num_serving)
            for (text, prompt), scope, experts, gates in zip(
                asked, is_in, *map(torch.Tensor.tolist, found), strict=True
            ):
                text.mixed = Mixed(experts, gates if scope else [0.0] * len(gates), tuple(prompt))
        acting = [i for i, text in enumerate(batch.texts) if text.mixed is not None and any(text.mixed.gates)]
        if not acting:
            return None
        mixed, device = [batch.texts[i].mixed for i in acting], batch.ids.device
        return Acting.of(
            [(batch.pieces[i].row, batch.pieces[i].places) for i in acting],
            torch.tensor([each.experts for each in mixed], device=device),
            torch.tensor([each.gates for each in mixed], device=device),
            batch.width,
            num_committed,
            uses_open,
        )

    def learn(
        self, config: RouterConfig, bank: KVRouter, anchors: torch.Tensor, learner: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts and gates, of shape `(b, s)`, of prompts in training that belong to the open experts `learner`, `(b,)`."""
        forced = learner if config.train_route == "forced" else None
        return self.gates(config, bank, anchors, len(bank.keys) + len(self.keys), forced)


def padded(prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Tokens of prompts, -1 behind each that is shorter than others, of shape `(b, t)`."""
    ids = torch.full((len(prompts), max(map(len, prompts))), -1)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    return ids


def prompts_of(batch: Batch) -> list[list[int] | None]:
    """Of each text the tokens of a prompt that has just come; `None` where it is only continued."""
    prompts: list[list[int] | None] = []
    for i, (piece, text, first) in enumerate(zip(batch.pieces, batch.texts, batch.firsts, strict=True)):
        if batch.prompt is not None:
            row = batch.prompt[i * len(batch.prompt) // len(batch.texts)]
            prompt = row[row != -1].tolist()
            prompts.append(None if text.mixed is not None and text.mixed.prompt == tuple(prompt) else prompt)
        elif piece.labels is not None and text.prompt is not None:
            of_labels = [token for token, label in zip(piece.tokens, piece.labels, strict=True) if label == -100]
            prompts.append([*text.ids[:first], *of_labels])
        else:
            is_new = text.mixed is None or len(piece.tokens) > 1
            prompts.append(text.ids[: text.prompt] if is_new else None)
    return prompts


def examples(
    anchors: torch.Tensor, experts: torch.Tensor, replayed: tuple[torch.Tensor, torch.Tensor] | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a router learns from: anchors with their experts, and behind them those of earlier edits, if they are replayed."""
    if replayed is None:
        return anchors, experts
    return torch.cat([anchors, replayed[0].to(anchors)]), torch.cat([experts, replayed[1].to(experts)])
