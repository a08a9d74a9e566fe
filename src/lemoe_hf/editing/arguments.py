"""How edits are trained."""

from __future__ import annotations

from dataclasses import dataclass


# A chat behind an earlier turn, and the subject alone in a statement and in a question: what made rephrasings of another form,
# and questions behind other turns, find their answer.
CONTEXTS = ("conversation", "{subject} is", "Question: What about {subject}?\nAnswer:")


@dataclass
class EditingArguments:
    """
    Args:
        learning_rate (`float`, *optional*, defaults to `0.15`):
            Step size of AdamW, relative to the scale of each matrix of an expert (1 over the root of the hidden size
            for input projections, 1 for output projections) where `relative` is set.
        relative (`bool`, *optional*, defaults to `True`):
            Whether the learning rate is relative.
        betas (`tuple[float, float]`, *optional*, defaults to `(0.7, 0.9)`):
            Of AdamW. An edit takes some ten steps: the customary averages over many more of them would only lag.
        max_steps (`int`, *optional*, defaults to `100`):
            Most steps an edit is trained. Most are done after ten to thirty. An expert of several edits takes so many passes
            over them.
        stop_loss (`float`, *optional*, defaults to `0.03`):
            Cross-entropy of its target, in nats a token, in each of its surroundings, at which an edit is done. Each edit
            stops by itself.
        batch_size (`int`, *optional*, defaults to `64`):
            Most edits trained side by side, each in its own expert. It bounds memory and changes no result. In an expert
            of several edits: samples of a step.
        end_of_sequence (`bool`, *optional*, defaults to `True`):
            Train the end of the text after the target, where the whole prompt is, so that `generate` stops there.
        seed (`int`, *optional*, defaults to `0`):
            Of the experts' first weights.
        contexts (`tuple[str]`, *optional*):
            Surroundings in which an edit is learned beside its bare prompt: texts with `{prompt}` or `{subject}` in
            them, `"chat"` for the tokenizer's chat template, and `"conversation"` for the same behind another turn. They
            cost their share of time, and without them an edit holds for questions of its own form only.
        share_out (`bool`, *optional*, defaults to `False`):
            Share the edits of a call out among the processes of `accelerate launch`, all of which must make the call.
            Only experts of one edit each, with `routing="nearest_anchor"`, can be; any others every process trains itself.
        replay (`int`, *optional*, defaults to `0`):
            Earlier edits, drawn at random, that are trained along with each batch where all edits share their weights (ELDER).
    """

    learning_rate: float = 0.15
    relative: bool = True
    betas: tuple[float, float] = (0.7, 0.9)
    max_steps: int = 100
    stop_loss: float = 0.03
    batch_size: int = 64
    end_of_sequence: bool = True
    seed: int = 0
    contexts: tuple[str, ...] = CONTEXTS
    share_out: bool = False
    replay: int = 0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "max_steps", "batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be positive; got {getattr(self, name)!r}.")

    @classmethod
    def paper(cls) -> EditingArguments:
        """LEMoE's AdamW with 2e-4 (section 5.1); the number of steps and their size are not published and are ours."""
        return cls(
            learning_rate=2e-4,
            relative=False,
            betas=(0.9, 0.999),
            max_steps=100,
            batch_size=32,
            end_of_sequence=False,
            contexts=(),
        )
