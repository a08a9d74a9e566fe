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

    Of the base model's logits a digest of all their bits is kept. Where the edited model's have the same, they are the same;
    only where they have not, the base model runs again, on the same batch, to tell by how much they differ.

    Args:
        batch_size (`int`): Prompts at once.
        base ([`Journal`]): Where the digests are kept.
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
            edited = batch.logits(model)
            base = self._base_logits(model, of_base, batch, edited)
            for after, before, column in zip(edited, base, batch.columns, strict=True):
                predicted, expected = (logits[column:].argmax(-1).tolist() for logits in (after, before))
                yield {
                    "locality": token_accuracy(predicted, expected),
                    "locality_exact": float(torch.equal(after, before)),
                    "locality_kl": kl_divergence(before[column:], after[column:]),
                }

    def _base_logits(
        self, model: PeftModel, of_base: str, batch: ForcedBatch, edited: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        keys = [digest(of_base, text, column) for text, column in zip(batch.texts(), batch.columns, strict=True)]
        if all(self.base.get(key) == digest_of_tensor(logits) for key, logits in zip(keys, edited, strict=True)):
            return edited
        with model.disable_adapter():
            base = batch.logits(model)
        found = zip(keys, map(digest_of_tensor, base), strict=True)
        self.base.write([(key, "logits", bits) for key, bits in found if self.base.get(key) != bits])
        return base
