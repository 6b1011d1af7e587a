"""The form of an answer while it comes: free thinking, for so many tokens, then words, calls or a grammar.

A ``Constraint``. Where a model decides to call a tool, the call's grammar begins with its opener.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from tpi.engine.constraint import Allowed
from tpi.engine.dialects.dialect import Tags
from tpi.engine.grammar import GrammarTokens
from tpi.engine.vocabulary import Vocabulary
from tpi.errors import ConstraintError

_TAIL_BYTES = 256
"""Longer than any mark and a token."""


@dataclass(frozen=True, slots=True)
class Form:
    """What an answer has to be. Grammars are Lark."""

    thinking: Tags | None = None
    """What the model thinks between, if it can."""
    starts_thinking: bool = False
    """The prompt has opened it."""
    budget_tokens: int | None = None
    grammar: str | None = None
    """Of all that comes after the thinking."""
    is_whole: bool = False
    """The grammar is of the thinking as well, which the answer begins with, if it thinks."""
    calls: Mapping[str, str] = field(default_factory=dict)
    """Of what comes after each opener of calls, where nothing else is demanded."""

    @property
    def is_free(self) -> bool:
        """Nothing is demanded."""
        return self.budget_tokens is None and self.grammar is None and not self.calls


class AnswerForm:
    """Of one answer.

    Raises:
        UsageError: a grammar is none, or too large.
    """

    def __init__(self, form: Form, tokens: GrammarTokens, vocabulary: Vocabulary) -> None:
        self._form, self._tokens, self._vocabulary = form, tokens, vocabulary
        self._matcher = tokens.start(form.grammar) if form.grammar is not None else None
        self._calls = {opener.encode(): tokens.start(grammar) for opener, grammar in form.calls.items()}
        self._thinks = form.starts_thinking and form.thinking is not None
        self._is_first = not self._thinks
        self._n_thought = 0
        self._tail = b""
        self._forced = deque[int]()
        self._opener = self._single(form.thinking.opener) if form.thinking is not None else None
        if self._thinks and form.budget_tokens == 0:
            self._close()

    @property
    def is_complete(self) -> bool:
        return self._matcher is not None and not self._thinks and self._matcher.is_complete

    def mask(self) -> Allowed:
        if self._forced:
            forced = np.zeros(self._tokens.n_tokens, np.bool_)
            forced[self._forced[0]] = True
            return forced
        if self._thinks and not self._form.is_whole:
            return self._tokens.all_but_ends if self._form.grammar is not None else None
        if self._matcher is None:
            return None
        allowed = self._matcher.mask()
        if allowed is not None and self._is_first and self._opener is not None and self._form.grammar is not None:
            allowed[self._opener] = True
        return allowed

    def accept(self, token: int) -> None:
        is_forced = bool(self._forced)
        if is_forced:
            self._forced.popleft()
        is_first, self._is_first = self._is_first, False
        if self._form.is_whole:
            self._accept_whole(token)
        elif self._thinks:
            self._accept_thought(token)
        elif is_forced:
            pass  # white space behind the thinking, of which the grammar need not know
        elif self._matcher is not None and not (is_first and token == self._opener):
            self._matcher.accept(token)
        else:
            self._accept_word(token)

    def _accept_thought(self, token: int) -> None:
        assert self._form.thinking is not None
        self._n_thought += 1
        self._grow_tail(token)
        rest = self._rest_after(self._form.thinking.closer.encode())
        if rest is not None:
            self._thinks, self._tail = False, b""
            if self._matcher is not None and rest.strip() and not self._matcher.try_accept(self._tokens.tokenize(rest)):
                raise ConstraintError("what follows the thinking is not what the answer must look like")
        elif self._form.budget_tokens is not None and self._n_thought >= self._form.budget_tokens and not self._forced:
            self._close()

    def _accept_whole(self, token: int) -> None:
        """The grammar says all of it; only how long is thought is counted."""
        assert self._form.thinking is not None and self._matcher is not None
        self._matcher.accept(token)
        self._grow_tail(token)
        tags, budget = self._form.thinking, self._form.budget_tokens
        mark = tags.closer if self._thinks else tags.opener
        if self._rest_after(mark.encode()) is not None:
            self._thinks, self._tail = not self._thinks, b""
        elif self._thinks:
            self._n_thought += 1
        is_over = self._thinks and budget is not None and self._n_thought >= budget and not self._forced
        if is_over and self._matcher.allows(self._closing()[0]):  # not between the parts of a character
            self._close()

    def _accept_word(self, token: int) -> None:
        self._grow_tail(token)
        if self._form.thinking is not None and self._rest_after(self._form.thinking.opener.encode()) is not None:
            self._thinks, self._tail = True, b""
            if self._form.budget_tokens == 0:
                self._close()
            return
        for opener, matcher in self._calls.items():
            rest = self._rest_after(opener)
            if rest is None:
                continue
            self._tail = b""
            # Where the model writes another call than is known, it is left alone.
            if not rest or matcher.try_accept(self._tokens.tokenize(rest)):
                self._matcher = matcher
            self._calls = {}
            return

    def _close(self) -> None:
        """Thinking ends now."""
        self._forced = deque(self._closing())

    def _closing(self) -> list[int]:
        assert self._form.thinking is not None
        text = self._form.thinking.closing or f"\n{self._form.thinking.closer}\n\n"
        return self._vocabulary.tokenize(text, add_special=False, parse_special=True)

    def _grow_tail(self, token: int) -> None:
        self._tail = (self._tail + self._vocabulary.token_bytes(token, special=True))[-_TAIL_BYTES:]

    def _rest_after(self, mark: bytes) -> bytes | None:
        place = self._tail.find(mark)
        return None if place < 0 else self._tail[place + len(mark) :]

    def _single(self, text: str) -> int | None:
        tokens = self._vocabulary.tokenize(text, add_special=False, parse_special=True)
        return tokens[0] if len(tokens) == 1 else None


def start_form(form: Form, tokens: GrammarTokens, vocabulary: Vocabulary) -> AnswerForm | None:
    """None, where nothing is demanded. Raises as ``AnswerForm``."""
    return None if form.is_free else AnswerForm(form, tokens, vocabulary)
