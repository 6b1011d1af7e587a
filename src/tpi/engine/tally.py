"""Counts what is asked and answered since the start: tokens, and how long callers waited for them.

Written by the thread of the scheduler's steps and by whoever asks, read by any.
"""

import bisect
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

from tpi.engine.generation import Generation

_WAITS_S = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0)
_GAPS_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)


class Histogram:
    """How many values were at most each of ``bounds``, or above them, and what all make together."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of values up to each bound and above the one before; the last: above all."""
        self.total = 0.0

    def add(self, value: float, n: int = 1) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += n
        self.total += value * n


class Tally:
    """Sums over all answers of an engine. Prompts count once they are computed: from what was drawn first on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_prompt_tokens = self.n_cached_tokens = self.n_tokens = 0
        """``n_cached_tokens`` of those of the prompts were not computed again."""
        self.ended: Counter[str] = Counter()
        """Answers, by why they ended."""
        self.first_s, self.whole_s = Histogram(_WAITS_S), Histogram(_WAITS_S)
        """From the request to the first token, and to the end."""
        self.queue_s = Histogram(_WAITS_S)
        """From the request until it got a place."""
        self.read_s = 0.0
        """From places to first tokens, or to vectors: what the tokens of prompts took that were computed."""
        self.gap_s = Histogram(_GAPS_S)
        """Between two tokens of an answer."""
        self.prompt_sizes, self.answer_sizes = Histogram(_SIZES), Histogram(_SIZES)

    def watch(self, notify: Callable[[], None]) -> "Watch":
        """Counts an answer that is about to begin."""
        return Watch(self, notify)


class Watch:
    """Counts what is new of one answer, whenever there is news of it, before ``notify`` is told."""

    def __init__(self, tally: Tally, notify: Callable[[], None]) -> None:
        self._tally, self._notify = tally, notify
        self._generation: Generation | None = None
        self._n_tokens, self._is_read, self._is_over = 0, False, False
        self._started_s = self._last_s = time.perf_counter()

    def begin(self, generation: Generation) -> None:
        """The answer that is counted; there may have been news of it."""
        self._generation = generation
        self._count()

    def tell(self) -> None:
        """There is news."""
        self._count()
        self._notify()

    def _count(self) -> None:
        if self._generation is None:
            return
        with self._tally.lock:
            answer, tally, now_s = self._generation.answer, self._tally, time.perf_counter()
            n_new = answer.n_tokens - self._n_tokens
            if not self._is_read and (n_new or answer.finish in ("stop", "length")):
                self._is_read = True
                tally.n_prompt_tokens += answer.n_prompt_tokens
                tally.n_cached_tokens += answer.n_cached_tokens
                tally.prompt_sizes.add(answer.n_prompt_tokens)
                tally.queue_s.add(answer.queue_s)
                tally.read_s += (answer.time_to_first_token_s or now_s - self._started_s) - answer.queue_s
            if n_new:
                if not self._n_tokens:
                    tally.first_s.add(answer.time_to_first_token_s)
                    self._last_s = self._started_s + answer.time_to_first_token_s
                n_gaps = n_new if self._n_tokens else n_new - 1
                if n_gaps:
                    tally.gap_s.add((now_s - self._last_s) / n_gaps, n_gaps)
                    self._last_s = now_s
                tally.n_tokens += n_new
                self._n_tokens = answer.n_tokens
            if answer.finish and not self._is_over:
                self._is_over = True
                tally.ended[answer.finish] += 1
                tally.answer_sizes.add(answer.n_tokens)
                tally.whole_s.add(now_s - self._started_s)
