"""DRY ("don't repeat yourself"): a token that would go on with what has been said word for word before loses the more,
the longer that is. After its author p-e-w, as llama.cpp has it. Penalties are for one thread, breakers for any.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.engine.settings import SamplingSettings
from tpi.engine.vocabulary import Vocabulary
from tpi.runtime.logits import Ids

Breakers: TypeAlias = Mapping[int, tuple[tuple[int, ...], ...]]
"""By token, what may follow it so that together they hold a string at which repetitions end; nothing: the token does so
alone."""

_MOST_TAIL_TOKENS = 20
_MOST_BREAKER_BYTES = 40
_MOST_KEPT = 16
_LOG_OF_MOST = 88.7228391
"""The logarithm of the largest number in 32 bits: no penalty is larger."""


class BreakerFinder:
    """Finds them, for one model: it looks through the words of the whole vocabulary, which it keeps from the first time
    on. Any thread."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary, self._lock = vocabulary, threading.Lock()
        self._words: _Words | None = None
        self._kept: dict[tuple[str, ...], Breakers] = {}

    def find(self, texts: tuple[str, ...]) -> Breakers:
        """The tokens of ``texts``, whatever stands before and after them in the same token."""
        if not texts:
            return {}
        with self._lock:
            found = self._kept.pop(texts, None)
            self._kept[texts] = found = self._look(texts) if found is None else found
            if len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            return found

    def _look(self, texts: Sequence[str]) -> Breakers:
        self._words = self._words or _Words.of(self._vocabulary)
        found: dict[int, set[tuple[int, ...]]] = {}
        for text in texts:
            wanted = text.encode()[:_MOST_BREAKER_BYTES]
            within = self._words.with_inside(wanted)
            for token in within.tolist():
                found.setdefault(token, set()).add(())
            for length in range(1, len(wanted)):
                tail = wanted[length:].decode("utf-8", "replace")
                rest = tuple(self._vocabulary.tokenize(tail, add_special=False, parse_special=False))
                tokens = np.setdiff1d(self._words.with_end(wanted[:length]), within)
                for token in tokens.tolist():
                    found.setdefault(token, set()).add(rest[:_MOST_TAIL_TOKENS])
        return {token: tuple(sorted(tails)) for token, tails in found.items()}


@dataclass(frozen=True)
class _Words:
    """All tokens' bytes behind each other; where each begins, and where the last ends."""

    data: bytes
    borders: Ids

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "_Words":
        words = [vocabulary.token_bytes(token, special=True) for token in range(vocabulary.n_tokens)]
        return cls(b"".join(words), np.cumsum([0, *map(len, words)], dtype=np.int64))

    def with_inside(self, part: bytes) -> Ids:
        """The tokens that hold ``part``, ascending."""
        places, place = list[int](), self.data.find(part)
        while place >= 0:
            places.append(place)
            place = self.data.find(part, place + 1)
        starts = np.array(places, np.int64)
        tokens = np.searchsorted(self.borders, starts, side="right") - 1
        return np.unique(tokens[starts + len(part) <= self.borders[tokens + 1]])

    def with_end(self, part: bytes) -> Ids:
        """The tokens that end with ``part``, ascending."""
        data: npt.NDArray[np.uint8] = np.frombuffer(self.data, np.uint8)
        tokens = np.flatnonzero(np.diff(self.borders) >= len(part))
        for number, byte in enumerate(reversed(part), start=1):
            tokens = tokens[data[self.borders[tokens + 1] - number] == byte]
        return tokens


def penalties(settings: SamplingSettings, breakers: Breakers, tokens: Sequence[int] | Ids) -> dict[int, float]:
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
