"""Does the edited model leave unrelated prompts alone?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..data.edit import Edit
from .accuracy import Probe, over_probes
from .digest import digest, digest_of_base, digest_of_tensor
from .forced import ForcedBatch, forced_batches
from .journal import Journal
from .metrics import kl_divergence, token_accuracy


class Locality:
    """
    Logits at locality prompts and their answers, against those of the base model.

    Args:
        batch_size (`int`): Prompts at once.
        base ([`Journal`]): Where digests of the base model's logits are kept, as [`logits_beside_base`] says.
    """

    name = "locality"

    def __init__(self, batch_size: int, base: Journal):
        self.batch_size, self.base = batch_size, base

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit]
    ) -> list[dict[str, float]]:
        of_base = digest_of_base(model)
        return over_probes(edits, "locality", lambda probes: self._of_probes(model, of_base, tokenizer, probes))

    def _of_probes(
        self, model: PeftModel, of_base: str, tokenizer: PreTrainedTokenizerBase, probes: list[Probe]
    ) -> Iterator[dict[str, float]]:
        prompts, answers = [prompt for _, prompt, _ in probes], [answer or "the" for _, _, answer in probes]
        for batch in forced_batches(tokenizer, prompts, answers, self.batch_size):
            found = logits_beside_base(model, of_base, batch, self.base)
            for before, after, column in zip(*found, batch.columns, strict=True):
                predicted, expected = (logits[column:].argmax(-1).tolist() for logits in (after, before))
                yield {
                    "locality": token_accuracy(predicted, expected),
                    "locality_exact": float(torch.equal(after, before)),
                    "locality_kl": kl_divergence(before[column:], after[column:]),
                }


def logits_beside_base(
    model: PeftModel, of_base: str, batch: ForcedBatch, journal: Journal
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Logits of the base model, whose digest is `of_base`, and of the edited one, as of [`ForcedBatch.logits`].

    Of the base model's a digest of all their bits is kept. Where the edited model's have the same, they are the same; only
    where they have not, the base model runs again, on the same batch, to tell by how much they differ.
    """
    edited = batch.logits(model)
    keys = [digest(of_base, text, column) for text, column in zip(batch.texts(), batch.columns, strict=True)]
    if all(journal.get(key) == digest_of_tensor(logits) for key, logits in zip(keys, edited, strict=True)):
        return edited, edited
    with model.disable_adapter():
        base = batch.logits(model)
    found = zip(keys, map(digest_of_tensor, base), strict=True)
    journal.write([(key, "logits", bits) for key, bits in found if journal.get(key) != bits])
    return base, edited
