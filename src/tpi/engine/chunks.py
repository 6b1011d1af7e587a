"""How many tokens of a prompt go into one pass: as many as there is room for, but no more than others can wait for.

One thread.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tpi.runtime.passes import TILED_TOKENS

_FIRST = 16
"""So many tokens of a prompt share a pass with others while nothing has been measured."""
_STRETCH = 1.75
"""So that also the slowest of a hundred passes takes about twice the time; see ``bench readers``."""
_TILE_ROWS = 16
"""Kernels compute so many rows at once: 16 cost less than 13 (``bench servers``)."""
_SMOOTHING = 0.3
_MEMORY = 50
"""After so many passes a number of rows that took too long is tried again, if fewer rows seem to allow it."""


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
        self._usual_s: dict[int, float] = {}
        """By number of answers, what a pass without prompts takes."""
        self._tiles_s: dict[int, float] = {}
        """By number of rows, what a pass of whole tiles takes."""
        self._tried: dict[int, int] = {}
        """And when there was one, counted in passes."""
        self._n_passes = 0
        self._token_s: float | None = None
        """By how much each token of prompts makes a pass longer that has fewer rows than the next tile."""

    def budget(self, n_answers: int, most: int) -> int:
        """How many tokens of prompts a pass of ``most`` tokens may have beside those of ``n_answers``."""
        n_left, usual_s = most - n_answers, self._usual(n_answers)
        if not n_answers or not n_left:
            return n_left
        first = (n_answers // _TILE_ROWS + 1) * _TILE_ROWS
        if usual_s is None:
            return min(n_left, first - n_answers)
        limit_s, most_tried = self._stretch * usual_s, max(self._tiles_s, default=0)
        n_rows = max(first, 2 * most_tried)
        while n_rows >= first and self._expected(n_rows, n_answers, usual_s, limit_s) > limit_s:
            n_rows -= _TILE_ROWS
        n_tokens = n_rows - n_answers
        token_s = usual_s / n_answers if self._token_s is None else max(self._token_s, 1e-9)
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
        usual_s, n_rows = self._usual(n_answers), n_answers + n_read
        if not n_read:
            self._usual_s[n_answers] = _smoothed(self._usual_s.get(n_answers), took_s)
        elif n_rows % _TILE_ROWS == 0:
            self._tiles_s[n_rows] = _smoothed(self._tiles_s.get(n_rows), took_s)
            self._tried[n_rows] = self._n_passes
        elif usual_s is not None:
            self._token_s = _smoothed(self._token_s, max(took_s - usual_s, 0.0) / n_read)
        self._n_passes += 1

    def _expected(self, n_rows: int, n_answers: int, usual_s: float, limit_s: float) -> float:
        """What a pass of whole tiles may take: as measured, or as it seems from those of fewer."""
        known_s = self._tiles_s.get(n_rows)
        if known_s is not None and (known_s <= limit_s or self._n_passes - self._tried[n_rows] < _MEMORY):
            return known_s
        below = max((n for n in self._tiles_s if n_answers < n < n_rows), default=0)
        token_s = (self._tiles_s[below] - usual_s) / (below - n_answers) if below else self._token_s or 0.0
        return usual_s + max(token_s, 0.0) * (n_rows - n_answers)

    def _usual(self, n_answers: int) -> float | None:
        """Measured with as many answers, or as near as there is."""
        if not self._usual_s:
            return None
        return self._usual_s[min(self._usual_s, key=lambda n: abs(n - n_answers))]


def _smoothed(known_s: float | None, took_s: float) -> float:
    """A short time tells what is possible; a long one may have been disturbed."""
    return took_s if known_s is None else min(took_s, known_s + _SMOOTHING * (took_s - known_s))
