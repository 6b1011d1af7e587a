"""DRY ("don't repeat yourself"): a token that would go on with what has been said word for word before loses the more,
the longer that is. After its author p-e-w, as llama.cpp has it. Pure; one thread.
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from tpi.engine.settings import SamplingSettings
from tpi.engine.vocabulary import Vocabulary
from tpi.runtime.logits import Ids

Breakers: TypeAlias = Mapping[int, tuple[tuple[int, ...], ...]]
"""By token, what may follow it so that together they hold a string at which repetitions end; nothing: the token does so
alone."""

_MOST_TAIL_TOKENS = 20
_MOST_BREAKER_BYTES = 40
_LOG_OF_MOST = 88.7228391
"""The logarithm of the largest number in 32 bits: no penalty is larger."""


def find_breakers(vocabulary: Vocabulary, texts: Sequence[str]) -> Breakers:
    """The tokens of ``texts``, whatever stands before and after them in the same token. Looks at the whole vocabulary:
    to be kept."""
    found: dict[int, set[tuple[int, ...]]] = {}
    words = [vocabulary.token_bytes(token, special=True) for token in range(vocabulary.n_tokens)]
    for text in texts:
        wanted = text.encode()[:_MOST_BREAKER_BYTES]
        for token, word in enumerate(words):
            for tail in _tails(word, wanted):
                rest = vocabulary.tokenize(tail.decode("utf-8", "replace"), add_special=False, parse_special=False)
                found.setdefault(token, set()).add(tuple(rest[:_MOST_TAIL_TOKENS]))
    return {token: tuple(sorted(tails)) for token, tails in found.items()}


def _tails(word: bytes, wanted: bytes) -> set[bytes]:
    """What of ``wanted`` is missing after a word that holds it, or ends with the beginning of it."""
    if wanted in word:
        return {b""}
    lengths = range(1, min(len(word), len(wanted) - 1) + 1)
    return {wanted[length:] for length in lengths if word.endswith(wanted[:length])}


def penalties(settings: SamplingSettings, breakers: Breakers, tokens: Sequence[int]) -> dict[int, float]:
    """What is taken from the logits of the next token after ``tokens``, by token."""
    if settings.dry_multiplier == 0:
        return {}
    backwards = np.asarray(tokens[max(0, len(tokens) - settings.dry_window_tokens) :], np.int64)[::-1]
    allowed = settings.dry_allowed_length
    limit = _limit(backwards, breakers)
    if backwards.size <= allowed or limit < allowed:
        return {}
    most = int(_LOG_OF_MOST / np.log(settings.dry_base)) if settings.dry_base > 1.000001 else 0
    return {
        token: settings.dry_multiplier * settings.dry_base ** min(length - allowed, most)
        for token, length in _repeats(backwards, allowed, min(limit, allowed + most)).items()
        if () not in breakers.get(token, ())
    }


def _limit(backwards: Ids, breakers: Breakers) -> int:
    """How many of the last tokens come after the last breaker."""
    if breakers:
        heads = np.flatnonzero(np.isin(backwards, np.fromiter(breakers, np.int64, len(breakers))))
        for place in heads.tolist():
            after = tuple(backwards[max(0, place - _MOST_TAIL_TOKENS) : place][::-1].tolist())
            fitting = [len(tail) for tail in breakers[int(backwards[place])] if after[: len(tail)] == tail]
            if fitting:
                return int(place) - max(fitting)
    return int(backwards.size)


def _repeats(backwards: Ids, least: int, most: int) -> dict[int, int]:
    """By token, how many of the last tokens, ``least`` to ``most``, stand before it somewhere."""
    found: dict[int, int] = {}
    ends = np.arange(1, backwards.size)  # where the last token may have come before, counted from the end
    for length in range(most + 1):
        if length >= least:
            found |= dict.fromkeys(np.unique(backwards[ends - 1]).tolist(), length)
        ends = ends[ends + length < backwards.size]
        ends = ends[backwards[ends + length] == backwards[length]]
        if not ends.size:
            break
    return found
