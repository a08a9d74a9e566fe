"""Take measures of many rows, some at a time, and go on where that was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from ..editing.parallel import by_all_processes
from ..generation import evaluating
from .digest import digest, digest_of_model, digest_of_tokenizer
from .journal import Journal
from .metrics import means
from .report import versions


logger = logging.get_logger(__name__)

# Batches between two writes to the folder of what is under way.
BATCHES_AT_ONCE = 4


class Measure(Protocol):
    """Gives every row, an [`Edit`] say, some scores by their names, or none where the row has not what they need."""

    name: str

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any]
    ) -> list[dict[str, float]]: ...


class Evaluator:
    """
    Takes measures of rows, and gives the mean of each.

    Args:
        rows (`Sequence`): What to measure on, edits or questions.
        measures (`Sequence` of [`Measure`]): What to measure.
        batch_size (`int`, *optional*, defaults to 16): Prompts at once.
        share_out (`bool`, *optional*, defaults to `False`):
            Share the rows out among the processes of `accelerate launch`, all of which must make the call; each of them
            returns the measures of all rows.
        work (`str` or `Path`, *optional*):
            A folder to which scores are written as JSON lines as they come, so that the same call goes on where it was
            interrupted. They are found again by the row, the versions, the tokenizer, the base model and all that would be
            saved of the adapter: other rows and other adapters may share the folder. What is needed of the base model's
            outputs is kept there as well, for all adapters.
    """

    counts: ClassVar[str] = "num_rows"
    protocol: ClassVar[str] = "after all edits"

    def __init__(
        self,
        rows: Sequence[Any],
        measures: Sequence[Measure],
        batch_size: int = 16,
        share_out: bool = False,
        work: str | Path | None = None,
    ):
        self.rows, self.measures, self.batch_size = list(rows), list(measures), batch_size
        self.share_out, self.work = share_out, work

    def __call__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, float]:
        return {self.counts: len(self.rows), **means(self.scores(model, tokenizer, self.rows))}

    def scores(
        self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Any]
    ) -> list[dict[str, float]]:
        """Of every row, the scores of all measures: what the means are taken of."""

        def score(part: Sequence[Any]) -> list[dict[str, float]]:
            scores: list[dict[str, float]] = [{} for _ in part]
            done = None if self.work is None else Journal(self.work, "scores")
            of_both = "" if done is None else digest(digest_of_model(model), digest_of_tokenizer(tokenizer))
            for measure in self.measures:
                if done is None:
                    new = measure.scores(model, tokenizer, part)
                else:
                    new = self._resumed(measure, done, of_both, model, tokenizer, part)
                for score_of_row, score_of_measure in zip(scores, new, strict=True):
                    score_of_row.update(score_of_measure)
            return scores

        with evaluating(model):
            return by_all_processes(rows, score) if self.share_out else score(rows)

    def _resumed(
        self,
        measure: Measure,
        done: Journal,
        of_both: str,
        model: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Any],
    ) -> list[dict[str, float]]:
        """Scores of one measure; those already in the journal are not computed again."""
        keys = [digest(of_both, measure.name, row) for row in rows]
        # The same rows come together whether a run was interrupted or not: the last bits hang on what is in a batch.
        size = BATCHES_AT_ONCE * self.batch_size
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            if any(key not in done for key in keys[part]):
                about = [f"{measure.name}: {getattr(row, 'prompt', row)}" for row in rows[part]]
                done.write(zip(keys[part], about, measure.scores(model, tokenizer, rows[part]), strict=True))
                logger.info(f"{measure.name}: {min(first + size, len(rows))} of {len(rows)}")
        return [done[key] for key in keys]

    def report(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, **context: Any) -> dict[str, Any]:
        """
        Take the measures, and tell with them what is needed to repeat them.

        Args:
            context: What only the caller knows, above all `edits_per_step` and `seed`.
        """
        measures = self(model, tokenizer)
        return {
            "protocol": self.protocol,
            "base_model": model.get_base_model().name_or_path,
            self.counts: measures.pop(self.counts),
            **context,
            "measures": measures,
            "versions": versions(),
        }
