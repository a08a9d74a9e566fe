"""
Nearest anchor routing, the default: a text finds the edits whose anchors it holds, and of a subject's edits the one that it
asks for. Nothing about it is trained with the edits.

Axes: `n` columns that are asked, `p` pairs of such a column and a subject, `o` options, `k` as in [`Relations`].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from .anchors import Anchors, Match
from .names import Names
from .naming import begins_with_another, named, respelled_prompt, search
from .relations import Relations, features_of, words_of
from .scope import names, own_prompt
from .targets import Targets
from .text import Option, Question, Text
from .vocabulary import CAPITAL, CONTINUES, MARK, PRONOUN, Vocabulary


# A question with neither a subject nor a pronoun is about a subject that was named at most so many sentences before, or in the
# turn before, whatever was answered there.
REMEMBERED = 2


@dataclass
class Asking:
    """A text in one forward pass: its first new column, and the questions that end from there on."""

    text: Text
    first: int
    questions: list[Question] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        """Whether hidden states are needed to tell what is asked for."""
        return any(option.key >= 0 for question in self.questions for option in question.options)


@dataclass(frozen=True)
class Router:
    """
    What an adapter knows of its edits' names and questions; it needs no model around it.

    Args:
        anchors ([`Anchors`]), targets ([`Targets`]): Of all edits.
        vocabulary ([`Vocabulary`]): What the tokens are.
        relations ([`Relations`], *optional*): Without them a subject alone asks for its edits.
        threshold (`float`, *optional*), relation_threshold (`float`, *optional*): Replace those of anchors and relations.
        names ([`Names`], *optional*): Of the edits that are found letter by letter.
        near (`bool`): Whether names are also found with one letter wrong.
    """

    anchors: Anchors
    targets: Targets
    vocabulary: Vocabulary
    relations: Relations | None = None
    threshold: float | None = None
    relation_threshold: float | None = None
    names: Names | None = None
    near: bool = True

    def questions(self, askings: Sequence[Asking]) -> None:
        """Find out at which new columns of texts a question may end, and what it may ask for."""
        to_search = [each for each in askings if self._may_ask(each.text, each.first)]
        self._search([each.text for each in to_search])
        for each in to_search:
            # A mark in a text without names asks for nothing, and that counts once there are some.
            if each.text.found or each.text.asked(each.first):
                each.questions = self._questions(each.text, each.first)

    @staticmethod
    def _may_ask(text: Text, first: int) -> bool:
        return text.prompt is None or bool(text.asked(first))

    def _search(self, texts: Sequence[Text]) -> None:
        """Find the anchors in texts that have grown."""
        grown = [text for text in texts if text.searched < len(text)]
        if not grown or not len(self.anchors):
            return
        ids = torch.full((len(grown), max(map(len, grown))), -1)
        for row, text in enumerate(grown):
            ids[row, : len(text)] = torch.tensor(text.ids)
        for text, found in zip(grown, self.anchors.find(ids, self.threshold), strict=True):
            text.found, text.searched = found, len(text)
            text.found = found + self._find_names(text)

    def _find_names(self, text: Text) -> list[Match]:
        """Names in a text that has grown; only what is new is searched."""
        known = self._known_names
        if known is None:
            return []
        spellings, spelled = self.vocabulary.spellings, text.spelled
        for token in text.ids[spelled.columns :]:
            spelled.read(spellings.of(token))
        search(spelled, known, spellings.everyday, self.near, self.anchors.expert_of)
        return spelled.found

    @property
    def _known_names(self) -> Names | None:
        """The names, if there are any, and it is known how tokens are spelled."""
        return self.names if self.names is not None and len(self.names) and self.vocabulary.is_spelled else None

    def _questions(self, text: Text, first: int) -> list[Question]:
        """
        Where nobody has told where prompts end, an edit's own prompt asks at its last token, and any token behind a name may
        be the end of a question, but for those within an edit's own prompt.
        """
        columns = text.asked(first)
        if text.prompt is None:
            prompts = [match for match in text.found if match.is_prompt]
            within = {column for match in prompts for column in range(match.first, match.last)}
            named = min((match.reached for match in text.found if not match.is_prompt), default=len(text))
            guessed = {match.last for match in prompts} | set(range(max(first, named), len(text)))
            columns = {column: "guess" for column in guessed - within if column >= first} | columns
        questions = [self._question(text, column, kind) for column, kind in sorted(columns.items())]
        return [each for each in questions if each.kind != "guess" or each.own or each.options]

    def _question(self, text: Text, column: int, kind: str) -> Question:
        said_until = text.said_until(column) if kind == "end" else column
        own, found = own_prompt(text.found, column, said_until), text.found
        known = self._known_names
        if known is not None:
            if own is None and kind != "guess":
                own = respelled_prompt(text.spelled, known, column, said_until, self.anchors.expert_of)
            letter_by_letter = named(text.spelled, known, column, kind != "guess", self.threshold)
            found = [match for match in found if not match.name] + letter_by_letter
            if own is not None and begins_with_another(own, text.spelled.found, letter_by_letter):
                own = None
        if own is not None:
            return Question(column, kind, own, [])
        about = names(self.anchors, found, text.ids, self.vocabulary, column)
        # A subject that is named after the end of a sentence takes over; within a sentence, what is asked decides.
        about = [match for match in about if not any(text.begins[other.first] > match.last for other in about)]
        if kind == "guess":
            about = [match for match in about if text.begins[column] <= match.last]
        options = [
            self._option(match, each)
            for match in about
            for each in (match, *match.rivals)
            if not self._is_about_another(text, column, each)
        ]
        return Question(column, kind, None, options, [0.0] * len(options))

    def _is_about_another(self, text: Text, column: int, match: Match) -> bool:
        """
        Whether a question that does not name a subject itself is about somebody or something else: nothing in it stands for
        what was named before, and it holds a capitalised word that does not stand in the edit's prompt, or the subject was
        named more than `REMEMBERED` sentences ago, and not in the turn before.
        """
        until = text.said_until(column)
        begin = text.begins[until]
        if match.last >= begin:
            return False
        if any(kind & PRONOUN for kind in text.kinds[begin : until + 1]):
            return False
        answers = sum(match.last < reply < begin for reply in text.replies)
        is_remembered = answers == 1 or text.sentences(match.last, begin - 1) <= REMEMBERED
        if self.vocabulary.tells_pronouns and not is_remembered:
            return True
        prompts = self.anchors.prompts(match.edit)
        return any(
            text.kinds[each] & CAPITAL and not any(stands_in(word_at(text, each, until), prompt) for prompt in prompts)
            for each in range(begin + 1, until + 1)
        )

    def _option(self, match: Match, each: Match) -> Option:
        key, lowest = -1, -math.inf
        if self.relations is not None and len(self.relations):
            key = int(self.relations.rows_of(torch.tensor([each.edit], device=self.relations.edit.device)))
        if key >= 0 and self.relations is not None:
            own = float(self.relations.threshold[key])
            lowest = own if self.relation_threshold is None else self.relation_threshold
        return Option(match, each.edit, each.expert, key, lowest)


def word_at(text: Text, first: int, last: int) -> list[int]:
    """The tokens, up to a column, of the word that begins at `first`: two names may begin with the same token."""
    end = first + 1
    while end <= last and text.kinds[end] & CONTINUES and not text.kinds[end] & CAPITAL:
        end += 1
    return text.ids[first:end]


def stands_in(word: list[int], prompt: Sequence[int]) -> bool:
    """Whether these tokens stand in a row in a prompt."""
    return any(list(prompt[i : i + len(word)]) == word for i in range(len(prompt) - len(word) + 1))


@torch.no_grad()
def score(
    router: Router,
    askings: Sequence[Asking],
    hidden: Sequence[torch.Tensor],
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """
    Tell how surely questions ask for their options.

    Args:
        router ([`Router`]): With its relations: what edits are about. Without them nothing is to be told.
        askings (`Sequence` of [`Asking`]): Texts, of whose questions some wait.
        hidden (`Sequence` of `torch.Tensor`, each of shape `(n, d)`): What entered the layers that tell in adapters from
            before words alone were read, at the columns of those that are [`waiting`], in their order.
        embed (`Callable`): Input embeddings of tokens.
    """
    asked, relations = waiting(askings), router.relations
    if relations is None:
        return
    pairs = [
        (row, text, question, match)
        for row, (text, question) in enumerate(asked)
        for match in {(option.name.first, option.name.last): option.name for option in question.options}.values()
    ]
    spoken = [words_beside(text, question.column, (name.first, name.last)) for _, text, question, name in pairs]
    if relations.is_of_words:
        vectors = relations.embed_words(*counted(spoken, embed))
    else:
        said = mean_of_words(relations, spoken, hidden[0].device, embed)
        num_words = len(relations.mean) - sum(states.shape[-1] for states in hidden)
        states = relations.project(features_of(list(hidden)), num_words)
        rows = torch.tensor([row for row, *_ in pairs], device=states.device)
        vectors = F.normalize(states[rows] + said, dim=-1)
    of_pair = {(row, name.first, name.last): i for i, (row, _, _, name) in enumerate(pairs)}
    keyed = [
        (of_pair[row, option.name.first, option.name.last], question, i, option)
        for row, (_, question) in enumerate(asked)
        for i, option in enumerate(question.options)
        if option.key >= 0
    ]
    keys = relations.keys[torch.tensor([option.key for *_, option in keyed], device=relations.keys.device)].float()
    of_key = torch.tensor([pair for pair, *_ in keyed], device=keys.device)
    found, allowance = relations.score_pairs(keys, vectors, of_key).tolist(), relations.allowance
    for (pair, question, i, option), value in zip(keyed, found, strict=True):
        _, text, *_ = pairs[pair]
        question.scores[i] = value if text.kinds[question.column] & MARK else value + allowance
        if relations.is_of_words and tells_target(router, spoken[pair], option.edit):
            question.scores[i] = -math.inf


def tells_target(router: Router, spoken: list[int], edit: int) -> bool:
    """Whether words tell an edit's target, as its own prompt does not: is it that, who is it if not that?"""
    prompts = router.anchors.prompts(edit)
    told = [list(target) for target in router.targets.of(edit)]
    return any(
        stands_in(target, spoken) and not any(stands_in(target, prompt) for prompt in prompts) for target in told
    )


def counted(
    words: Sequence[Sequence[int]], embed: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of shape `(v, d)` of all tokens in `n` lists, and how often each stands in each list, of shape `(n, v)`."""
    tokens, place = torch.tensor([token for each in words for token in each], dtype=torch.long).unique(
        return_inverse=True
    )
    embedded = embed(tokens)
    owner = torch.tensor([row for row, each in enumerate(words) for _ in each], dtype=torch.long)
    counts = torch.zeros(len(words), len(tokens))
    counts.index_put_((owner, place), torch.ones(len(owner)), accumulate=True)
    return embedded, counts.to(embedded.device)


def mean_of_words(
    relations: Relations,
    spoken: Sequence[list[int]],
    device: torch.device,
    embed: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Of each list of tokens the mean, as the relations see it, of shape `(p, k)`; 0 where there is none."""
    home = relations.mean.device
    said = relations.mean.new_zeros(len(spoken), relations.num_directions)
    tokens = torch.tensor([token for words in spoken for token in words], dtype=torch.long, device=device)
    if not len(tokens):
        return said
    owner = torch.tensor([i for i, words in enumerate(spoken) for _ in words], device=home)
    count = torch.tensor([max(len(words), 1) for words in spoken], device=home)[:, None]
    return said.index_add(0, owner, relations.project(words_of(embed(tokens).detach()))) / count


def waiting(askings: Sequence[Asking]) -> list[tuple[Text, Question]]:
    """The questions of which hidden states are needed, each with its text."""
    return [
        (each.text, question)
        for each in askings
        for question in each.questions
        if any(option.key >= 0 for option in question.options)
    ]


def words_beside(text: Text, column: int, name: tuple[int, int]) -> list[int]:
    """Tokens of the last sentence up to a column, without those of the subject that it may be about."""
    first, last = name
    until = column if text.kinds[column] & MARK else text.said_until(column)
    begin = text.begins[until]
    if first < begin <= last + 1:  # a stop within the name ends no sentence
        begin = text.begins[first]
    return [
        token
        for each, token in enumerate(text.ids[begin : until + 1], begin)
        if token >= 0 and not first <= each <= last
    ]
