"""How many tokens of a prompt go into one pass: as many as there is room for, but no more than others can wait for.

One thread.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tpi.runtime.passes import TILED_TOKENS

_FIRST = 16
"""So many tokens of a prompt share a pass with others while nothing has been measured."""
_MOST_TOKENS = 4096.0
_MOST_CHANGE = 2.0
_SMOOTHING = 0.3
_GROWTH = 0.7


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
    """Learns from passes how many tokens of prompts may share one with tokens of answers, so that it takes at most
    ``stretch`` times what it would take without them."""

    def __init__(self, stretch: float = 2.0) -> None:
        self._stretch = stretch
        self._usual_s: dict[int, float] = {}
        """By number of answers, what a pass without prompts takes."""
        self._n_tokens = float(_FIRST)

    def budget(self, n_answers: int, most: int) -> int:
        """How many tokens of prompts a pass of ``most`` tokens may have beside those of ``n_answers``."""
        n_left = most - n_answers
        return n_left if not n_answers else max(1, min(n_left, int(self._n_tokens)))

    @contextmanager
    def timed(self, n_answers: int, n_read: int) -> Iterator[None]:
        """Around a pass, with so many tokens of prompts beside those of answers."""
        started_s = time.perf_counter()
        yield
        took_s = time.perf_counter() - started_s
        if not n_answers:
            return
        usual_s = self._usual(n_answers)
        if not n_read:
            # A short one tells what is possible; a long one may have been disturbed.
            self._usual_s[n_answers] = (
                took_s if usual_s is None else min(took_s, usual_s + _SMOOTHING * (took_s - usual_s))
            )
        elif usual_s is not None:
            extra_s = max(took_s - usual_s, 1e-6)
            factor = n_read * (self._stretch - 1) * usual_s / extra_s / self._n_tokens
            factor = min(max(factor, 1 / _MOST_CHANGE), _MOST_CHANGE)
            # Where passes take their time for the disk, more tokens cost nothing, and shall soon be as many as fit.
            weight = _GROWTH if factor == _MOST_CHANGE else _SMOOTHING
            self._n_tokens = min(max(1.0, self._n_tokens * factor**weight), _MOST_TOKENS)

    def _usual(self, n_answers: int) -> float | None:
        """Measured with as many answers, or as near as there is."""
        if not self._usual_s:
            return None
        return self._usual_s[min(self._usual_s, key=lambda n: abs(n - n_answers))]
