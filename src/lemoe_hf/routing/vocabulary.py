"""What tokens are to a text: which end a question, which a sentence, which stand for a turn of a conversation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch

from .frozen import Frozen


# A question ends here; any sentence does, or a turn; it is one of the tokenizer's own tokens; a name goes on with it; it holds
# a letter or a digit; it ends in a colon; the header of a turn follows, which names who speaks; a capitalised word begins; it
# stands for somebody or something that was named.
MARK, STOP, SPECIAL, CONTINUES, WORD, COLON, HEADER, CAPITAL, PRONOUN = (2**i for i in range(9))
PRONOUNS = frozenset(
    ["it", "its", "he", "him", "his", "she", "her", "hers", "they", "them", "their", "theirs"]
    + ["there", "that", "this", "these", "those", "here"]
)


class Vocabulary(Frozen):
    """
    Axes: `v` tokens of the vocabulary, `m` tokens.

    Buffers: `kinds` (v), the sum of what each token is; `reply` (m), the tokens between a user's turn and the answer in the
    model's chat template, none where there is no template.
    """

    sizes = ("num_token_kinds", "num_reply_tokens")

    kinds: torch.Tensor
    reply: torch.Tensor

    def __init__(self, num_kinds: int = 0, num_reply: int = 0):
        super().__init__()
        self.register_buffer("kinds", torch.zeros(num_kinds, dtype=torch.int16))
        self.register_buffer("reply", torch.zeros(num_reply, dtype=torch.int32))
        self._table: tuple[torch.Tensor, tuple[int, ...], tuple[int, ...], bool] | None = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self._table = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._table = None
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def is_known(self) -> bool:
        return len(self.kinds) > 0

    def _looked_up(self) -> tuple[torch.Tensor, tuple[int, ...], tuple[int, ...], bool]:
        # Texts are read token by token: a table in Python answers faster than a tensor.
        if self._table is None or self._table[0] is not self.kinds:
            kinds = tuple(self.kinds.tolist())
            tells_pronouns = any(kind & PRONOUN for kind in kinds)
            self._table = (self.kinds, kinds, tuple(self.reply.tolist()), tells_pronouns)
        return self._table

    @property
    def table(self) -> tuple[int, ...]:
        """The kind of every token."""
        return self._looked_up()[1]

    @property
    def reply_tokens(self) -> tuple[int, ...]:
        return self._looked_up()[2]

    @property
    def tells_pronouns(self) -> bool:
        """Whether any token is known to stand for what was named: not in adapters from before that was told."""
        return self._looked_up()[3]

    def kind(self, token: int) -> int:
        """What a token is; nothing in particular if it is none of the vocabulary."""
        table = self.table
        return table[token] if 0 <= token < len(table) else 0


def kinds_from_lists(marks: torch.Tensor, stops: torch.Tensor, continuing: torch.Tensor) -> torch.Tensor:
    """What tokens are, as far as adapters tell that were saved before there was more to tell."""
    lists = {MARK: marks, STOP: stops, CONTINUES: continuing}
    known = 1 + max(int(tokens.max()) for tokens in lists.values() if len(tokens))
    kinds = torch.zeros(known, dtype=torch.int16, device=stops.device)
    for kind, tokens in lists.items():
        kinds[tokens.long()] |= kind
    kinds[kinds & STOP == 0] |= WORD
    return kinds
