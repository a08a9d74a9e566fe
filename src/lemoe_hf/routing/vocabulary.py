"""What tokens are to a text: which end a question, which a sentence, which stand for a turn of a conversation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch

from .frozen import Frozen
from .letters import letter


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
    Axes: `v` tokens of the vocabulary, `m` tokens, `n` bytes.

    Buffers: `kinds` (v), the sum of what each token is; `reply` (m), the tokens between a user's turn and the answer in the
    model's chat template, none where there is no template; `spelling` (n), the bytes of all tokens, and `spelling_lengths`
    (v), none of either where these are not known.
    """

    sizes = ("num_token_kinds", "num_reply_tokens", "num_spelling_bytes", "num_spelled_tokens")

    kinds: torch.Tensor
    reply: torch.Tensor
    spelling: torch.Tensor
    spelling_lengths: torch.Tensor

    def __init__(self, num_kinds: int = 0, num_reply: int = 0, num_bytes: int = 0, num_spelled: int = 0):
        super().__init__()
        self.register_buffer("kinds", torch.zeros(num_kinds, dtype=torch.int16))
        self.register_buffer("reply", torch.zeros(num_reply, dtype=torch.int32))
        self.register_buffer("spelling", torch.zeros(num_bytes, dtype=torch.uint8))
        self.register_buffer("spelling_lengths", torch.zeros(num_spelled, dtype=torch.int16))
        self._spellings: Spellings | None = None
        self._table: tuple[torch.Tensor, tuple[int, ...], tuple[int, ...], bool] | None = None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self._table = self._spellings = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._table = self._spellings = None
        super()._load_from_state_dict(*args, **kwargs)

    @property
    def is_known(self) -> bool:
        return len(self.kinds) > 0

    @property
    def is_spelled(self) -> bool:
        return len(self.spelling) > 0

    @property
    def spellings(self) -> Spellings:
        """What tokens are as text."""
        if self._spellings is None or self._spellings.source is not self.spelling:
            self._spellings = Spellings(self.spelling, self.spelling_lengths, self.table)
        return self._spellings

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


class Spellings:
    """
    What tokens are as text: by their bytes, of which several tokens may make one character.

    Args:
        source (`torch.Tensor` of shape `(n,)`), lengths (`torch.Tensor` of shape `(v,)`): Bytes of all tokens.
        kinds (`Sequence[int]`): What each token is.
    """

    def __init__(self, source: torch.Tensor, lengths: torch.Tensor, kinds: Sequence[int]):
        self.source, self._kinds = source, kinds
        self._bytes = source.cpu().numpy().tobytes()
        self._ends = lengths.long().cumsum(0).tolist()
        self._everyday: frozenset[str] | None = None

    def of(self, token: int) -> bytes | None:
        """The bytes of a token; `None` of the tokenizer's own, and of what is no token."""
        if not 0 <= token < len(self._ends) or self._kinds[token] & SPECIAL:
            return None
        return self._bytes[self._ends[token - 1] if token else 0 : self._ends[token]]

    @property
    def everyday(self) -> frozenset[str]:
        """Words that have a token of their own, as frequent ones do, as names are compared."""
        if self._everyday is None:
            tokens = (self.of(token) for token in range(len(self._ends)))
            words = (token[1:].decode(errors="replace") for token in tokens if token and token[:1] == b" ")
            self._everyday = frozenset("".join(letter(char).key for char in word) for word in words if word.isalpha())
        return self._everyday


def kinds_from_lists(marks: torch.Tensor, stops: torch.Tensor, continuing: torch.Tensor) -> torch.Tensor:
    """What tokens are, as far as adapters tell that were saved before there was more to tell."""
    lists = {MARK: marks, STOP: stops, CONTINUES: continuing}
    known = 1 + max(int(tokens.max()) for tokens in lists.values() if len(tokens))
    kinds = torch.zeros(known, dtype=torch.int16, device=stops.device)
    for kind, tokens in lists.items():
        kinds[tokens.long()] |= kind
    kinds[kinds & STOP == 0] |= WORD
    return kinds
