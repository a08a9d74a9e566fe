"""What edits need to know of the base model, measured once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..generation import evaluating
from ..routing.relations import Relations
from .procedure import Procedure
from .relations import fit_relations, learn_vocabulary, relation_keys
from .scale import output_scale
from .spelling import learn_spelling
from .tokens import TokenizedEdit
from .vocabularies import note_tokenizer


@torch.no_grad()
def prepare(procedure: Procedure) -> None:
    """Measure the scale in which experts write, what tokens are, and how relations are told apart, if nobody has yet."""
    name, root, tokenizer = procedure.adapter_name, procedure.root, procedure.tokenizer
    context, lead = procedure.tuner.context, procedure.layers[0]
    with evaluating(root), lead.changing(name):
        note_tokenizer(tokenizer, lead.changed("stamp", name))
        if procedure.config.normalize and procedure.config.output_scale is None:
            scale = output_scale(root, context, lead, tokenizer)
            if procedure.tuner.ledger(name):  # of a training loop, which knows of no scale
                scale = 2.0 ** round(math.log2(scale))  # a power of two takes no bit from what it left
                procedure.rescale(scale)
            context.versions.set(procedure.config, {"output_scale": scale})
        relations = relations_of(procedure)
        if not lead.vocabulary(name).is_known:
            learn_vocabulary(lead.changed("vocabulary", name), tokenizer)
        if procedure.config.finds_names and not lead.vocabulary(name).is_spelled:
            learn_spelling(lead.changed("vocabulary", name), tokenizer)
        if relations is not None and not relations.is_fitted:
            relations = lead.changed("relations", name)
            fit_relations(relations, lead.vocabulary(name), root, tokenizer)


def relations_of(procedure: Procedure) -> Relations | None:
    """What tells edits of one subject apart; `None` where the config does not ask for it, or the model cannot."""
    name = procedure.adapter_name
    return procedure.layers[0].relations(name) if procedure.tuner.context.taps[name] else None


def keys_of(procedure: Procedure, items: Sequence[TokenizedEdit]) -> torch.Tensor | None:
    """What edits are about, a key each; `None` where that is not looked at."""
    relations = relations_of(procedure)
    if relations is None or not items:
        return None
    name, pad = procedure.adapter_name, procedure.tokenizer.pad_token_id
    vocabulary, context = procedure.layers[0].vocabulary(name), procedure.tuner.context
    return relation_keys(relations, vocabulary, procedure.root, context, name, items, pad)
