"""How many tokens of a prompt go into one pass: as many as there is room for, but no more than others can wait for.

One thread.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tpi.runtime.passes import TILED_TOKENS

_STRETCH = 1.85
"""Less than twice, since that is what the slowest of a hundred passes may take; see ``bench readers``."""
_TILE_ROWS = 16
"""Kernels compute so many rows at once: 16 cost less than 13 (``bench servers``)."""
_MOST_GROWTH = 1.25
"""Of a known time, with one that is longer: that pass may have been disturbed. A shorter one tells what is possible."""
_LEAST_S = 1e-6
_MOST_COST = 2.0
"""Of a token of a prompt ÷ one of an answer: if one seems to have cost more, something else took the time."""
_MEMORY = 64
"""After so many passes what one takes without prompts is measured again, and a number of rows that took too long is
tried again if fewer rows seem to allow it."""


def next_chunk(n_tokens: int, most: int, *, is_staged: bool = False) -> int:
    """How many of the next ``n_tokens`` of a prompt to compute in one pass of at most ``most``: of as few passes as
    possible, or for ranks that are stages of as many as have 64 tokens. Passes are about equal if that gives each 64
    tokens or more: then the logits do not depend on ``most``, which a short rest, computed by other and slower kernels,
    would change."""
    n_passes = -(-n_tokens // most)
    if is_staged:
        n_passes = max(n_passes, n_tokens // TILED_TOKENS)
    if n_tokens < TILED_TOKENS * n_passes:
        return min(n_tokens, most)
    return n_tokens // n_passes


class ChunkSizes:
    """Learns from passes how many tokens of prompts may share one with tokens of answers, so that it takes about
    ``stretch`` times what it would take without them: whole tiles, where one can be filled."""

    def __init__(self, stretch: float = _STRETCH) -> None:
        self._stretch = stretch
        self._usual = dict[int, _Time]()
        """By number of answers, what a pass without prompts takes."""
        self._tiles = dict[int, _Time]()
        """By number of rows, what a pass of whole tiles takes."""
        self._token_s: float | None = None
        """By how much each token of prompts makes a pass longer that has fewer rows than the next tile."""
        self._n_passes = 0

    def budget(self, n_answers: int, most: int) -> int:
        """How many tokens of prompts a pass of ``most`` tokens may have beside those of ``n_answers``. None, where it
        is not known what a pass without takes: that one will tell."""
        n_left = most - n_answers
        if not n_answers or not n_left:
            return n_left
        usual_s = self._usual_s(n_answers)
        if usual_s is None:
            return 0
        limit_s = self._stretch * usual_s
        first = (n_answers // _TILE_ROWS + 1) * _TILE_ROWS
        n_rows = max(first, 2 * max(self._tiles, default=0))
        while n_rows >= first and self._expected(n_rows, n_answers, usual_s, limit_s) > limit_s:
            n_rows -= _TILE_ROWS
        n_tokens = n_rows - n_answers
        known_s = usual_s / n_answers if self._token_s is None else self._token_s
        token_s = min(known_s, _MOST_COST * usual_s / n_answers)
        n_odd = min(int((limit_s - usual_s) / token_s), n_tokens + _TILE_ROWS - 1)
        return max(1, min(n_left, n_tokens if 2 * n_tokens >= n_odd else n_odd))

    @contextmanager
    def timed(self, n_answers: int, n_read: int) -> Iterator[None]:
        """Around a pass, with so many tokens of prompts beside those of answers."""
        started_s = time.perf_counter()
        yield
        if n_answers:
            self._learn(n_answers, n_read, time.perf_counter() - started_s)

    def _learn(self, n_answers: int, n_read: int, took_s: float) -> None:
        self._n_passes += 1
        n_rows = n_answers + n_read
        if not n_read:
            self._usual[n_answers] = self._time(self._usual.get(n_answers), took_s)
        elif n_rows % _TILE_ROWS == 0:
            self._tiles[n_rows] = self._time(self._tiles.get(n_rows), took_s)
        elif (usual_s := self._usual_s(n_answers)) is not None:
            extra_s = max(took_s - usual_s, _LEAST_S) / n_read
            self._token_s = _smoothed(self._token_s, extra_s)

    def _expected(self, n_rows: int, n_answers: int, usual_s: float, limit_s: float) -> float:
        """What a pass of whole tiles may take: as measured, or as it seems from those of fewer."""
        known = self._tiles.get(n_rows)
        if known is not None and (known.took_s <= limit_s or self._is_fresh(known)):
            return known.took_s
        below = max((n for n in self._tiles if n_answers < n < n_rows), default=0)
        token_s = (self._tiles[below].took_s - usual_s) / (below - n_answers) if below else self._token_s or 0.0
        return usual_s + max(token_s, 0.0) * (n_rows - n_answers)

    def _usual_s(self, n_answers: int) -> float | None:
        """Measured lately, with about as many answers."""
        near = [n for n, known in self._usual.items() if self._is_fresh(known) and abs(n - n_answers) * 4 <= n_answers]
        return self._usual[min(near, key=lambda n: abs(n - n_answers))].took_s if near else None

    def _is_fresh(self, known: "_Time") -> bool:
        return self._n_passes - known.pass_number < _MEMORY

    def _time(self, known: "_Time | None", took_s: float) -> "_Time":
        return _Time(_smoothed(None if known is None else known.took_s, took_s), self._n_passes)


@dataclass(frozen=True)
class _Time:
    """What a pass took, and which one measured it last."""

    took_s: float
    pass_number: int


def _smoothed(known_s: float | None, took_s: float) -> float:
    return took_s if known_s is None else min(took_s, known_s * _MOST_GROWTH)
