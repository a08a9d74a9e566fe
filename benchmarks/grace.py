"""GRACE (Hartvigsen et al., 2023, arXiv 2211.11031), plainly: a codebook beside one linear layer, a key for each edit.

A key is the layer's input at the last token of an edit's prompt, its value what the layer gives from then on for every input
within the key's radius. The settings are those published for EasyEdit: radii of 1 at first, values that start at random and
are learned by Adam in 100 steps of 1.0, in the second matrix of the FFN at 27/32 of the depth (layer 27 of Llama-2-7B).

Every token is looked up, since nothing tells a layer where a prompt ends, and a value replaces the output at the tokens that
are found and no others. Targets are the same if their tokens are. Values of edits made together are learned in one batch: they
do not see each other, so that each becomes what it would become alone. Only what lies above the codebook runs in training,
which needs a model with its layers in one list, as Llama's, and nothing else between embeddings and layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors.torch import load_file, save_file
from torch import nn

from lemoe_hf import Edit
from lemoe_hf.editing.tokens import continuation
from lemoe_hf.generation import pad_right
from lemoe_hf.structure import find_targets


RADIUS, LEARNING_RATE, STEPS, DEPTH = 1.0, 1.0, 100, 27 / 32


def distances(x: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    # By products of matrices, which is the default, an input would not lie at its own key.
    return torch.cdist(x, keys, compute_mode="donot_use_mm_for_euclid_dist")


class Codebook(nn.Module):
    """
    A frozen linear layer, and what it gives instead near the keys.

    Axes: `n` keys, `i` and `o` sizes of the layer's input and output, `b` rows, `t` tokens.

    Buffers: `keys` (n, i), `values` (n, o), `radii` (n). `labels` has the target tokens of each key.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.layer = layer
        for name, shape in {"keys": (0, layer.in_features), "values": (0, layer.out_features), "radii": (0,)}.items():
            self.register_buffer(name, layer.weight.new_zeros(shape))
        self.labels: list[list[int]] = []
        self.trained: tuple[torch.Tensor, torch.Tensor] | None = (
            None  # columns (b) and values (b, o) of a batch in training
        )
        self.seen: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, self.seen = self.layer(x), x
        if self.trained is not None:
            columns, values = self.trained
            return output.index_put((torch.arange(len(columns)), columns), values)
        if not len(self.keys):
            return output
        distance, nearest = distances(x, self.keys.expand(len(x), -1, -1)).min(-1)
        return torch.where((distance <= self.radii[nearest])[..., None], self.values[nearest], output)

    def place(self, key: torch.Tensor, label: list[int]) -> bool:
        """Make room for a key of shape `(i)`, and tell whether it needs a value: not where it widens another's radius."""
        distance, nearest = torch.inf, -1
        if len(self.keys):
            distance, nearest = (each.item() for each in distances(key[None], self.keys)[0].min(-1))
        radius = RADIUS
        if nearest >= 0 and distance <= RADIUS + self.radii[nearest].item():
            if self.labels[nearest] == label:
                self.radii[nearest] = max(distance, self.radii[nearest].item())
                return False
            radius = distance / 2
            self.radii[nearest] = radius - 1e-5
        self.keys = torch.cat([self.keys, key[None]])
        self.values = torch.cat([self.values, torch.rand(1, self.values.shape[1])])
        self.radii = torch.cat([self.radii, self.radii.new_tensor([radius])])
        self.labels.append(label)
        return True


class GraceEditor:
    """
    Makes edits in a codebook, which stands where PEFT keeps a copy of the layer: without adapters, the layer itself acts.

    Args:
        base ([`~transformers.PreTrainedModel`]): The base model.
        tokenizer: Its tokenizer.
        saved (`Path`, *optional*): A folder that `save_pretrained` has written.
    """

    def __init__(self, base: nn.Module, tokenizer, saved: Path | None = None):
        (ffn,) = find_targets(base, DEPTH)
        self.index = int(ffn.split(".")[-2])
        name = next(
            f"{ffn}.{name}"
            for name, module in reversed(list(base.get_submodule(ffn).named_modules()))
            if isinstance(module, nn.Linear) and module.out_features == base.config.hidden_size
        )
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=DUMMY_TARGET_MODULES, modules_to_save=[name])
        self.model, self.tokenizer = get_peft_model(base, config).eval(), tokenizer
        kept = base.get_submodule(name).modules_to_save
        self.codebook = kept["default"] = Codebook(kept["default"].requires_grad_(False))
        if saved is not None:
            state = load_file(saved / "codebook.safetensors")
            lengths = state.pop("lengths").tolist()
            self.codebook.labels = [part.tolist() for part in state.pop("labels").split(lengths)]
            for key, tensor in state.items():
                setattr(self.codebook, key, tensor)

    def edit(self, edits: Sequence[Edit]) -> None:
        torch.manual_seed(len(self.codebook.keys))
        prompts = [self.tokenizer(edit.prompt.rstrip())["input_ids"] for edit in edits]
        targets = [continuation(self.tokenizer, edit.prompt.rstrip(), edit.target_new.strip()) for edit in edits]
        keys, trained = self._keys(prompts), []
        for i, (key, target) in enumerate(zip(keys, targets, strict=True)):
            if self.codebook.place(key, target):
                trained.append(i)
        if trained:
            self._train([prompts[i] for i in trained], [targets[i] for i in trained])

    @torch.no_grad()
    def _keys(self, prompts: list[list[int]]) -> torch.Tensor:
        """Of each prompt the layer's input at its last token, of shape `(b, i)`, which no value can change."""
        ids, mask = pad_right(prompts, self.tokenizer.pad_token_id, self.model.device)
        self.model(input_ids=ids, attention_mask=mask)
        return self.codebook.seen[torch.arange(len(ids)), mask.sum(1) - 1]

    def _train(self, prompts: list[list[int]], targets: list[list[int]]) -> None:
        """Learn the values of the last keys, one for each prompt."""
        texts = [prompt + target for prompt, target in zip(prompts, targets, strict=True)]
        ids, mask = pad_right(texts, self.tokenizer.pad_token_id, self.model.device)
        places = [(row, len(p) - 1 + i) for row, p in enumerate(prompts) for i in range(len(targets[row]))]
        rows, columns = torch.tensor(places).T
        expected = torch.tensor([token for target in targets for token in target])
        # Each edit's own mean over its target, as if it were alone.
        weights = torch.tensor([1 / len(target) for target in targets for _ in target])
        values = nn.Parameter(self.codebook.values[-len(prompts) :].clone())
        optimizer = torch.optim.Adam([values], lr=LEARNING_RATE)
        decoder, head = self.model.get_base_model().base_model, self.model.get_output_embeddings()
        layers = decoder.layers
        with torch.no_grad():
            below = decoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[self.index]
        self.codebook.trained = torch.tensor([len(prompt) - 1 for prompt in prompts]), values
        decoder.layers = layers[self.index :]  # what lies below the codebook is the same in every step
        try:
            for _ in range(STEPS):
                hidden = decoder(inputs_embeds=below, attention_mask=mask, use_cache=False).last_hidden_state
                losses = nn.functional.cross_entropy(head(hidden[rows, columns]), expected, reduction="none")
                (losses * weights).sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        finally:
            self.codebook.trained, decoder.layers = None, layers
        self.codebook.values[-len(prompts) :] = values.detach()

    def save_pretrained(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self.codebook, name) for name in ("keys", "values", "radii")}
        state["labels"] = torch.tensor([token for label in self.codebook.labels for token in label], dtype=torch.int32)
        state["lengths"] = torch.tensor([len(label) for label in self.codebook.labels], dtype=torch.int32)
        save_file(state, folder / "codebook.safetensors")
