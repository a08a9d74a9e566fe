"""
Tiny models whose last token is what a prompt asks for, and edits that act only where they are asked for.

Or, with `by="words"`, models whose prompts ask by any word of the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from lemoe_hf import LEMoEConfig
from lemoe_hf.editing.relations import prompt_features
from lemoe_hf.routing.cached import cache_in
from lemoe_hf.routing.context import Running
from lemoe_hf.routing.passes import Acting
from lemoe_hf.routing.relations import Relations
from tiny import PAD, logits, prompts_of, put_edits, tiny
from worded import put_vocabulary, vocabulary_of


# Tokens that ask for something; a full stop; and a score that lies between those of equal and of different askers.
A, B, C, D = ASKERS = [301, 302, 303, 304]
STOP, THRESHOLD = 310, 8.0


def clear(family: str = "llama") -> PreTrainedModel:
    """A tiny model whose hidden states tell the latest token, above all if that is one of the askers."""
    model = tiny(family)
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and any(part.isdigit() for part in name.split(".")):
            weight.data *= 0.3
    rows = model.get_input_embeddings().weight.data
    rows[ASKERS] = 4 * (rows[ASKERS] + rows[300])
    return model


@cache
def _learned(family: str, layers: tuple[int, ...] | None, by: str) -> dict[str, torch.Tensor]:
    """
    Relations of a clear model, as adapters from before have them: one for each asker, and one for all other tokens; `by`
    hidden states, or words.
    """
    model = get_peft_model(clear(family), LEMoEConfig(layers_to_transform=layers and list(layers))).eval()
    prompts = [
        [*prompt, *asker]
        for asker in [*([each] for each in ASKERS), []]
        for length in (4, 8)
        for prompt in prompts_of(60, length, seed=sum(asker))
    ]
    relation = torch.arange(len(ASKERS) + 1).repeat_interleave(120)
    relations = Relations()
    features = features_of_prompts(model, prompts, [(0, 0)] * len(prompts))
    num_words = model.get_input_embeddings().weight.shape[1]
    # What is alike in all prompts tells nothing.
    features[:, slice(num_words) if by == "hidden" else slice(num_words, None)] = 0
    relations.mean, relations.directions = discriminant(features, relation)
    noise = torch.randn(400, relations.num_directions, generator=torch.Generator().manual_seed(0))
    relations.cohort = F.normalize(noise, dim=-1).bfloat16()
    relations.thresholds.fill_(THRESHOLD)
    return dict(relations.named_buffers())


def discriminant(features: torch.Tensor, relation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The mean of features of shape `(n, f)`, and directions of shape `(f, k)` in which relations differ more than what is alike
    but for the subject: linear discriminant analysis (Fisher 1936).
    """
    mean, count = features.mean(0), torch.bincount(relation)[:, None]
    x = features - mean
    means = x.new_zeros(len(count), x.shape[1]).index_add(0, relation, x) / count
    within = x - means[relation]
    covariance = within.T @ within / len(within)
    covariance.diagonal().add_(0.3 * covariance.diagonal().mean() + 1e-6)
    root = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(root, means.T, upper=False)
    directions = torch.linalg.svd(whitened, full_matrices=False)[0][:, : Relations.num_directions]
    directions = torch.linalg.solve_triangular(root.T, directions, upper=True)
    directions = F.pad(directions, (0, Relations.num_directions - directions.shape[1]))
    return mean, (directions / directions.abs().max()).bfloat16()


def features_of_prompts(
    model: PeftModel, prompts: list[list[int]], subjects: list[tuple[int, int]], adapter_name: str = "default"
) -> torch.Tensor:
    root, context, vocabulary = model.base_model.model, model.base_model.context, vocabulary_of(stops=(STOP,))
    return prompt_features(root, context, adapter_name, prompts, subjects, vocabulary, PAD)


def gated(
    family: str = "llama", marks: tuple[int, ...] = (), adapter_name: str = "default", by: str = "hidden", **config
) -> PeftModel:
    """
    A clear model with an empty adapter, which knows what its askers ask for and that `marks` end a question.

    The bypass is not in the last layer: on which columns an expert acts changes what is cached above it.
    """
    options = {"expert_dtype": "float32", "layers_to_transform": [2]} | config
    model = get_peft_model(clear(family), LEMoEConfig(**options), adapter_name=adapter_name).eval()
    teach(model, family, marks, adapter_name, by)
    return model


def teach(
    model: PeftModel,
    family: str = "llama",
    marks: tuple[int, ...] = (),
    adapter_name: str = "default",
    by: str = "hidden",
) -> None:
    layers = model.peft_config[adapter_name].layers_to_transform
    relations = relations_of(model, adapter_name)
    for name, tensor in _learned(family, layers and tuple(layers), by).items():
        setattr(relations, name, tensor.clone())
    put_vocabulary(model, vocabulary_of(marks, (STOP,)), adapter_name)


def relations_of(model: PeftModel, adapter_name: str = "default") -> Relations:
    return model.base_model.layers_of(adapter_name)[0].lemoe_relations[adapter_name]


def put_asked(
    model: PeftModel,
    prompts: list[list[int]],
    span: tuple[int, int],
    seed: int = 0,
    name: str = "default",
    targets: list[list[int]] | None = None,
) -> None:
    """Commit random experts, as an editor would, which act where their prompts' askers ask for them."""
    edits = put_edits(model, prompts, [span] * len(prompts), adapter_name=name, seed=seed, targets=targets)
    features = features_of_prompts(model, prompts, [span] * len(prompts), name)
    embedded = relations_of(model, name).embed(features)
    model.base_model.layers_of(name)[0].remember(name, edits, embedded)


# --------------------------------------------------------------------------------------------------------- expectations


# The expert that acts on a row, and its first column and the one behind its last; `None` where it acts to the end.
Span = tuple[int, int, int | None]


@contextmanager
def imposed(model: PeftModel, rows: Sequence[Sequence[Span]]) -> Iterator[None]:
    """
    Inside, the experts of each row act from a column to another, whatever the prompts ask for, and however the tokens are
    dealt out to forward passes.
    """
    context, columns = model.base_model.context, Columns()

    def begun(root, inputs: dict) -> Running:
        return Running(known=known(model, rows, *columns.of(inputs)))

    context._begun = begun
    try:
        yield
    finally:
        del context._begun


def known(model: PeftModel, rows: Sequence[Sequence[Span]], num: int, past: int, width: int) -> dict[str, Acting]:
    """What acts in a pass of `num` rows and `width` columns, behind `past` columns. A row may stand for several beams."""
    places, experts = [], []
    for row in range(num):
        for expert, start, end in rows[row * len(rows) // num]:
            last = past + width if end is None else min(end, past + width)
            columns = list(range(max(start, past), last))
            if columns:
                places.append((row, [column - past for column in columns]))
                experts.append([expert])
    if not places:
        return {}
    committed = len(model.base_model.layers_of()[0].lemoe_bank["default"])
    gates = torch.ones(len(experts), 1)
    return {"default": Acting.of(places, torch.tensor(experts), gates, width, committed, uses_open=False)}


@dataclass
class Columns:
    """Counts columns from pass to pass, for caches that keep a state and no count."""

    seen: int = 0

    def of(self, inputs: dict) -> tuple[int, int, int]:
        """Rows of a pass, columns behind it, and columns in it."""
        tokens, cache = inputs.get("input_ids", inputs.get("inputs_embeds")), cache_in(inputs)
        try:
            past = 0 if cache is None else int(cache.get_seq_length())
        except ValueError:
            past = self.seen
        self.seen = past + tokens.shape[1]
        return len(tokens), past, tokens.shape[1]


@contextmanager
def watched(model: PeftModel) -> Iterator[list[list[int | None]]]:
    """
    Gives a list that is filled with what acts on each column of each row: an expert, or -1; `None` where it had passed before.
    A column that passes once more, since it had been taken back, is that of its last pass.
    """
    context, columns, rows, passes = model.base_model.context, Columns(), [], []

    def begun(root, inputs: dict) -> Running | None:
        running = type(context)._begun(context, root, inputs)
        passes.append((*columns.of(inputs), running))
        return running

    context._begun = begun
    try:
        yield rows
    finally:
        del context._begun
        for num, past, width, running in passes:
            rows += [[] for _ in range(num - len(rows))]
            for row in rows[:num]:
                row[past:] = [None] * (past - len(row)) + [-1] * width
            routed = running and running.passes.get("default")
            acting = routed.acting() if routed else running and running.known.get("default")
            for piece in range(len(acting.rows) if acting else 0):
                for row, column, is_written in zip(
                    acting.rows[piece].tolist(),
                    acting.columns[piece].tolist(),
                    acting.written[piece].tolist(),
                    strict=True,
                ):
                    if is_written:
                        rows[row][past + column] = int(acting.experts[piece, 0])


def expected_logits(model: PeftModel, ids, rows: Sequence[Sequence[Span]], **inputs) -> torch.Tensor:
    with imposed(model, rows):
        return logits(model, ids, **inputs)


def expected_text(model: PeftModel, ids, rows: Sequence[Sequence[Span]], **options) -> torch.Tensor:
    with imposed(model, rows):
        return generate(model.base_model.model, ids, **options)


# Nothing that is decoded asks or ends a sentence, unless a test wants it to: random models say anything.
DECODING = {
    "max_new_tokens": 6,
    "min_new_tokens": 6,
    "do_sample": False,
    "pad_token_id": PAD,
    "suppress_tokens": [*ASKERS, STOP],
}


def generate(model, ids, **options) -> torch.Tensor:
    ids = torch.as_tensor(ids)
    ids = ids[None] if ids.dim() == 1 else ids
    return model.generate(input_ids=ids, **(DECODING | options))
