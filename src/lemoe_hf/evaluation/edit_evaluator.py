"""Measure an edited model: on the final model, after all edits, under both protocols."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..data.edit import Edit
from .accuracy import Accuracy
from .contexts import Contexts
from .conversation import Conversation
from .evaluator import Evaluator, Measure
from .journal import Journal
from .locality import Locality
from .routing import Routing


DEFAULT = ("reliability", "generality", "locality", "portability")


class EditEvaluator(Evaluator):
    """
    Reliability, generality, locality and more of edits.

    | group | key | what |
    |---|---|---|
    | `"reliability"` | `reliability` | share of target tokens predicted behind the prompt, teacher-forced |
    | | `perplexity` | of the target behind the prompt |
    | | `free_reliability` | greedy answers, up to target length + 2 tokens, that begin with the target |
    | | `free_reliability_strict` | the same answers, equal to the target |
    | `"generality"` | `generality`, `free_generality`, `free_generality_strict` | the same, behind rephrasings |
    | `"portability"` | `portability`, `free_portability`, `free_portability_strict` | the same, of what follows from edits |
    | `"locality"` | `locality` | share of most likely tokens, at the locality answers, that are the base model's |
    | | `locality_exact` | locality prompts with logits equal to the base model's, bit for bit |
    | | `locality_kl` | divergence from the base model there, in nats |
    | `"contexts"` | `free_reliability_chat` | as `free_reliability`, with the prompt in the chat template |
    | | `free_reliability_prefix`, `free_reliability_document` | behind 50 unrelated tokens, and behind 500 |
    | `"conversation"` | `conversation` | dialogues whose last answer is right: as one of the next two says |
    | | `conversation_target` | asked for the edit: greedy answers that begin with the target |
    | | `conversation_base` | asked for something else: the first 16 greedy tokens are the base model's |
    | | `conversation_kept` | share of these tokens that are the base model's |
    | | `conversation_*` | of each kind of dialogue, as [`Dialogue`] lists them |
    | | `conversation_cache` | second turns that, put on the cache of the first, are answered as the whole sent again |
    | | `conversation_alone` | dialogues of two turns that are answered alone as in a batch, token for token |
    | `"routing"` | `routed_prompt`, `routed_rephrase` | prompts and rephrasings on which the edit's own expert acts |
    | | `deferred_prompt`, `deferred_rephrase` | those on which no expert acts: falsely deferred |
    | | `deferred` | locality prompts on which no expert acts: the others are falsely accepted |

    A figure is the mean over the edits that have what it needs; where an edit has several prompts of a kind, its score is
    the mean over them. `num_edits` counts all edits.

    Args:
        edits (`Sequence` of [`Edit`]): What to measure.
        batch_size (`int`, *optional*, defaults to 16): Prompts at once.
        share_out (`bool`, *optional*, defaults to `False`): As in [`Evaluator`].
        measures (`Sequence[str]`, *optional*):
            Which groups to take, by default reliability, generality, locality and portability. Routing needs an adapter of
            this package, the others take any [`~peft.PeftModel`] whose method adds weights, as LoRA does.
        work (`str` or `Path`, *optional*): As in [`Evaluator`].

    Raises:
        TypeError: If the edits are no list of [`Edit`].
        ValueError: If there is no such group.

    Example:

        >>> EditEvaluator(edits, measures=["reliability", "routing"], work="evaluation")(model, tokenizer)
    """

    counts = "num_edits"
    protocol = "after all edits; teacher-forced, and by greedy free generation (free_*)"

    def __init__(
        self,
        edits: Sequence[Edit],
        batch_size: int = 16,
        share_out: bool = False,
        measures: Sequence[str] | None = None,
        work: str | Path | None = None,
    ):
        if isinstance(edits, Edit) or not all(isinstance(edit, Edit) for edit in edits):
            raise TypeError(f"`edits` must be a list of Edit objects; got {edits!r:.100}. `read_edits` makes them.")
        known: dict[str, Measure] = {
            "reliability": Accuracy("reliability", "prompt", batch_size),
            "generality": Accuracy("generality", "rephrase", batch_size),
            "locality": Locality(batch_size, Journal(work, "base")),
            "portability": Accuracy("portability", "portability", batch_size),
            "contexts": Contexts(batch_size),
            "conversation": Conversation(batch_size, edits, Journal(work, "base"), Journal(work, "answers")),
            "routing": Routing(batch_size),
        }
        wanted = DEFAULT if measures is None else measures
        unknown = [name for name in wanted if name not in known]
        if unknown or isinstance(wanted, str):
            raise ValueError(f"There are no measures {unknown or wanted!r}; choose from {', '.join(known)}.")
        super().__init__(edits, [known[name] for name in wanted], batch_size, share_out, work)
