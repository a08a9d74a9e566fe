"""The mixture of LoRAs of ELDER beside a frozen linear layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ... import structure
from ...routing.passes import EVERYTHING, Batch, Pass
from ...routing.training_batch import Lesson, lessons_of, new_edits
from ..known import KNOWN
from ..layer import EditingLayer
from .config import ELDERConfig
from .mixture import Codes, Mixture, draw_allocation, gates_of
from .passes import MixedPlaces, NamedPass, QueryPass, prompt_columns


class ELDERLayer(EditingLayer):
    r"""
    A frozen linear layer with LoRAs beside it: $h(x) = W_0 x + \lambda \sum_{i \in T} s_i B_i A_i x$ (ELDER, "Methods").

    The layer that leads, the first, also holds the codes of the edits, and chooses for all.
    """

    prefix = "elder_"
    adapter_layer_names = ("elder_mixture",)
    other_param_names = ("elder_codes", *(f"elder_{name}" for name in KNOWN))
    configs: dict[str, ELDERConfig]

    def make(self, adapter_name: str, config: ELDERConfig, leads: bool) -> None:
        self.elder_mixture[adapter_name] = Mixture(
            config, self.in_features, self.out_features, self.query_size(config)
        )
        self.elder_mixture[adapter_name].reset_parameters(config, self.place)
        if leads:
            self.elder_codes[adapter_name] = Codes(config.num_codes)

    def query_size(self, config: ELDERConfig) -> int:
        of_linear = config.query_source == "linear_input" or not self.hidden_size
        return self.in_features if of_linear else self.hidden_size

    def delta(self, adapter_name: str, acting: MixedPlaces, x: torch.Tensor) -> torch.Tensor:
        mixture = self.part("mixture", adapter_name)
        if acting.gates is None:  # no text: every input chooses by itself
            probabilities = mixture.probabilities(x.flatten(0, 1)).view(*x.shape[:2], -1)
            return mixture(x, gates_of(probabilities, mixture.chosen(probabilities)))
        return mixture(x, acting.gates[self.mixed(adapter_name).index(self)][:, None].to(x.device))

    def learns(self, adapter_name: str) -> bool:
        return torch.is_grad_enabled() and self.part("mixture", adapter_name).in_proj.requires_grad

    def sizes(self, adapter_name: str) -> dict[str, int]:
        return {"num_codes": len(self.codes(adapter_name))}

    def codes(self, adapter_name: str) -> Codes:
        return self.part("codes", adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.context.queried.pop(adapter_name, None)

    # ----------------------------------------------------------------------------------------------- codes, of all layers

    def mixed(self, adapter_name: str) -> list[ELDERLayer]:
        """The layers of an adapter, in the order of the model."""
        return self.context.in_order[adapter_name]

    def probabilities(self, adapter_name: str, queries: torch.Tensor) -> torch.Tensor:
        """What the routers of all layers make of queries of shape `(g, q)`, of shape `(l, g, e)`."""
        each = [layer.part("mixture", adapter_name).probabilities(queries) for layer in self.mixed(adapter_name)]
        return torch.stack([part.to(each[0].device) for part in each])

    def gates(self, adapter_name: str, queries: torch.Tensor) -> torch.Tensor:
        """The gates of all layers, of shape `(l, g, e)`."""
        probabilities = self.probabilities(adapter_name, queries)
        return gates_of(probabilities, self.part("mixture", adapter_name).chosen(probabilities))

    @torch.no_grad()
    def code(self, adapter_name: str, queries: torch.Tensor) -> torch.Tensor:
        """Codes of shape `(g, l, e)`, ones for the LoRAs that act."""
        return (self.gates(adapter_name, queries) > 0).transpose(0, 1).to(torch.int8)

    @torch.no_grad()
    def nearest(self, adapter_name: str, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Hamming distance to the nearest code of an edit, and that edit, both of shape `(g,)`, as [`Codes.nearest`] tells."""
        codes = self.codes(adapter_name)
        return codes.nearest(self.code(adapter_name, queries).to(codes.codes.device))

    def distance(self, adapter_name: str, queries: torch.Tensor) -> torch.Tensor:
        """Hamming distance to the nearest code of an edit, of shape `(g,)`."""
        return self.nearest(adapter_name, queries)[0]

    def refresh_codes(self, adapter_name: str) -> None:
        """Compute the codes of all edits anew, by the routers as they are now."""
        if len(self.codes(adapter_name)):
            with self.changing(adapter_name):
                codes = self.changed("codes", adapter_name)
                codes.codes = self.code(adapter_name, codes.queries).flatten(1).to(codes.codes)

    def allocate(self, adapter_name: str, targets: list[tuple[int, ...]], seed: int = 0) -> torch.Tensor:
        """
        The LoRAs of edits with these targets, of shape `(c, l, k)`: those of an earlier edit of the same target, or new ones.

        Raises:
            ValueError: If there are more targets than allocations.
        """
        config, codes, of = self.configs[adapter_name], self.codes(adapter_name), self.targets(adapter_name).of
        num_layers = len(self.mixed(adapter_name))
        stored = zip(codes.edit.tolist(), codes.allocated.tolist(), strict=True)
        of_target = {target: tuple(allocated) for edit, allocated in stored for target in of(edit)[:1]}
        for target in targets:
            if target not in of_target:
                used = set(of_target.values())
                of_target[target] = draw_allocation(
                    num_layers, config.num_experts, config.top_k, used, config.codes_unique, seed + len(used)
                )
        drawn = torch.tensor([of_target[target] for target in targets], device=codes.edit.device)
        return drawn.view(len(targets), num_layers, config.top_k)

    def trained(
        self, adapter_name: str, queries: torch.Tensor, allocated: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What edits pass in training.

        Args:
            queries (`torch.Tensor` of shape `(g, q)`), allocated (`torch.Tensor` of shape `(g, l, k)`): Of the edits.

        Returns:
            Gates of shape `(l, g, e)`, and the guided loss of each, $-\\sum \\log s$ of what is allocated, of shape `(g,)`.
        """
        probabilities = self.probabilities(adapter_name, queries)
        allocated = allocated.transpose(0, 1).to(probabilities.device, torch.long)
        guide = -probabilities.gather(-1, allocated).clamp(min=1e-20).log().sum((0, 2))
        is_hard = self.configs[adapter_name].allocation == "hard"
        chosen = allocated if is_hard else self.part("mixture", adapter_name).chosen(probabilities)
        return gates_of(probabilities, chosen), guide

    # ----------------------------------------------------------------------------------------------------------- routing

    def route(self, adapter_name: str, root: nn.Module, batch: Batch) -> Pass | None:
        config = self.configs[adapter_name]
        learns = self.learns(adapter_name)
        if self.training and learns:
            return self._lessons(adapter_name, root, batch)
        if config.deferral_by == "names" and not self.acts_anyhow(adapter_name):
            return NamedPass(self.router(adapter_name), batch, self, adapter_name, learns)
        asked = prompt_columns(batch)
        queried = self.context.queried.get(adapter_name)
        return QueryPass(self, adapter_name, batch, asked, queried, learns)

    def _lessons(self, adapter_name: str, root: nn.Module, batch: Batch) -> QueryPass:
        """Let the mixture act on the answers of a training batch, and put its prompts in scope."""
        lessons = lessons_of(batch.pieces, structure.bos_token(root))
        queried = self.context.queried.get(adapter_name)
        return QueryPass(self, adapter_name, batch, [], queried, True, lessons)

    def learn(
        self, adapter_name: str, lessons: list[Lesson], queries: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What lessons pass, as [`ELDERLayer.trained`] tells; those that are new leave their code."""
        new, made, entries = new_edits(self.anchors(adapter_name), lessons, 0)
        allocated = self.allocate(adapter_name, [lesson.target for lesson in lessons])
        if new:
            rows = [lessons.index(lesson) for lesson in new]
            ids = [entry["id"] for entry in entries]
            self.keep(adapter_name, ids, queries[rows], allocated[rows])
            targets = [(entry["id"], tuple(entry["target_ids"])) for entry in entries if entry["target_ids"]]
            made = [replace(anchor, expert=anchor.edit) for anchor in made]
            entries = [entry | {"expert": entry["id"]} for entry in entries]
            self.store(adapter_name, made, entries, targets)
        return self.trained(adapter_name, queries, allocated)

    def keep(self, adapter_name: str, edits: list[int], queries: torch.Tensor, allocated: torch.Tensor) -> None:
        """Store the codes of edits."""
        with self.changing(adapter_name):
            chosen = self.code(adapter_name, queries)
            self.changed("codes", adapter_name).add(edits, queries, allocated, chosen)

    def act_on_all(self, adapter_name: str) -> MixedPlaces | None:
        device = self.part("mixture", adapter_name).in_proj.device
        none = torch.zeros(1, 1, dtype=torch.long, device=device)
        return MixedPlaces(none, none, none == 0, EVERYTHING)
