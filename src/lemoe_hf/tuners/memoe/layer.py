"""The bypass of MEMoE: a mixture of experts beside a frozen module, which all edits share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from ... import structure
from ...routing.entities import of_prompt
from ...routing.kv_anchor import KVRouter, padded, prompts_of
from ...routing.mixture import Embed, Mixture, MixturePass
from ...routing.passes import EVERYTHING, Batch
from ...routing.text import Mixed
from ...routing.training_batch import Lesson, lessons_of, new_edits
from ..experts import Experts
from ..known import KNOWN
from ..layer import EditingLayer
from .config import MEMoEConfig
from .gate import TokenGate, balance, top


# Edits have no expert of their own: all of them are in the mixture.
MIXTURE = 0


class MEMoELayer(EditingLayer):
    r"""
    A frozen module with a mixture beside it: $h(x) = \mathrm{FFN}_0(x) + \lambda \sum_e G_e(x) f_e(x)$ (arXiv 2405.19086).

    All experts and the gate are trained together, and nothing is ever frozen.
    """

    prefix = "memoe_"
    # No `experts`: where a whole layer is bypassed, that name would be taken for its FFN's.
    adapter_layer_names = ("memoe_mixture", "memoe_gate")
    other_param_names = tuple(f"memoe_{name}" for name in KNOWN)
    of_fixed_size = adapter_layer_names
    configs: dict[str, MEMoEConfig]

    def make(self, adapter_name: str, config: MEMoEConfig, leads: bool) -> None:
        width = config.expert_dim or self.ffn_width()
        experts = Experts(
            config.num_experts,
            self.in_features,
            width,
            config.expert == "ffn",
            trainable=True,
            out_features=self.out_features,
        )
        gate = TokenGate(config.num_experts, self.in_features, self.anchor_features if config.use_anchor else 0)
        experts.reset_parameters(config.init_weights, alike=False)
        gate.reset_parameters()
        self.memoe_mixture[adapter_name], self.memoe_gate[adapter_name] = experts, gate

    @property
    def anchor_features(self) -> int:
        """Size of an input embedding; 0 in a model that embeds no tokens."""
        embeddings = getattr(self.context.root, "get_input_embeddings", None)
        return embeddings().weight.shape[1] if embeddings else 0

    def delta(self, adapter_name: str, acting: Mixture, x: torch.Tensor) -> torch.Tensor:
        config, experts = self.configs[adapter_name], self.part("mixture", adapter_name)
        anchors = acting.anchors.to(x)
        if config.normalize and anchors.shape[-1]:
            anchors = F.rms_norm(anchors, anchors.shape[-1:])
        noise = None if acting.noise is None else acting.noise.to(x)
        probabilities = self.part("gate", adapter_name)(x, anchors, noise)
        if acting.loss is not None and acting.written.any():
            acting.loss += config.balance_loss * balance(probabilities, acting.written.to(x.device))
        gates = (
            top(probabilities, config.top_k).flatten(0, 1).T[None]
        )  # one piece of all tokens, which has all experts
        every = torch.arange(len(experts), device=x.device)[None]
        return experts(x.flatten(0, 1)[None], every, gates).view(*x.shape[:2], -1)

    # ----------------------------------------------------------------------------------------------------------- routing

    def learns(self, adapter_name: str) -> bool:
        return torch.is_grad_enabled() and self.part("gate", adapter_name).weight.requires_grad

    def expert_in_training(self, adapter_name: str) -> int:
        return MIXTURE

    def route(self, adapter_name: str, root: nn.Module, batch: Batch) -> MixturePass | Mixture | None:
        learns, embed = self.learns(adapter_name), partial(mean_embeddings, root, batch.ids.device)
        everywhere = not self.configs[adapter_name].deferral
        if self.training and learns:
            lessons = self._remember(adapter_name, root, batch)
            if everywhere:
                return self.noisy(adapter_name, self._on_texts(adapter_name, batch, embed))
            return self.noisy(adapter_name, self._on(adapter_name, lessons, batch, embed))
        if everywhere or self.acts_anyhow(adapter_name):
            return self._on_texts(adapter_name, batch, embed)
        return MixturePass(self.router(adapter_name), batch, embed, learns)

    def _remember(self, adapter_name: str, root: nn.Module, batch: Batch) -> list[Lesson]:
        """Put the prompts of a training batch in scope; returns them with their answers."""
        lessons = lessons_of(batch.pieces, structure.bos_token(root))
        new, made, entries = new_edits(self.anchors(adapter_name), lessons, MIXTURE)
        if new:
            targets = [(entry["id"], tuple(entry["target_ids"])) for entry in entries if entry["target_ids"]]
            self.store(adapter_name, made, entries, targets)
        return lessons

    def _on(self, adapter_name: str, lessons: list[Lesson], batch: Batch, embed: Embed) -> Mixture:
        """The mixture, on the answers of a training batch."""
        if not lessons:
            return Mixture.nowhere(batch.width, embed)
        entities = self.entities(adapter_name, [lesson.read for lesson in lessons])
        return Mixture.of([(lesson.row, lesson.places) for lesson in lessons], entities, embed, batch.width)

    def _on_texts(self, adapter_name: str, batch: Batch, embed: Embed) -> Mixture:
        """The mixture, on every token of every text."""
        self._read_prompts(adapter_name, batch)
        known = [(piece, text) for piece, text in zip(batch.pieces, batch.texts, strict=True) if piece.places]
        if not known:
            return Mixture.nowhere(batch.width, embed)
        places = [(piece.row, piece.places) for piece, _ in known]
        return Mixture.of(places, [text.mixed.entity for _, text in known], embed, batch.width)

    def _read_prompts(self, adapter_name: str, batch: Batch) -> None:
        """Find out what texts are about whose prompts have come, to be kept with them."""
        asked = [(text, prompt) for text, prompt in zip(batch.texts, prompts_of(batch), strict=True) if prompt]
        for (text, prompt), entity in zip(
            asked, self.entities(adapter_name, [each for _, each in asked]), strict=True
        ):
            text.mixed = Mixed([MIXTURE], [1.0], tuple(prompt), entity)
        for text in batch.texts:  # nothing of it has come but padding
            text.mixed = text.mixed or Mixed([MIXTURE], [1.0], ())

    def entities(self, adapter_name: str, prompts: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """What prompts, given by their tokens, are about."""
        if not prompts:
            return []
        anchors, vocabulary = self.anchors(adapter_name), self.vocabulary(adapter_name)
        found = anchors.find(padded(prompts), self.configs[adapter_name].threshold)
        return [of_prompt(prompt, each, anchors, vocabulary) for prompt, each in zip(prompts, found, strict=True)]

    def noisy(self, adapter_name: str, acting: Mixture, generator: torch.Generator | None = None) -> Mixture:
        """The same, as it acts in training: with noise in the gate's scores, and a loss of the gate where one is asked for."""
        config, device = self.configs[adapter_name], acting.anchors.device
        if config.noise:
            shape = (*acting.columns.shape, config.num_experts)
            acting.noise = config.noise * torch.randn(shape, generator=generator).to(device)
        if config.balance_loss:
            acting.loss = torch.zeros((), device=device)  # every layer adds its own
        return acting

    def act_on_all(self, adapter_name: str) -> Mixture | None:
        device = self.part("gate", adapter_name).weight.device
        none = torch.zeros(1, 1, dtype=torch.long, device=device)
        anchors = torch.zeros(1, self.part("gate", adapter_name).anchor_features, device=device)
        return Mixture(none, none, none == 0, EVERYTHING, anchors)


def mean_embeddings(root: nn.Module, device: torch.device, entities: Sequence[tuple[int, ...]]) -> torch.Tensor:
    """Mean input embedding of each tuple of tokens, of shape `(g, d)`; 0 for an empty one."""
    return KVRouter.anchors_of(root, padded([entity or (-1,) for entity in entities]).to(device))
