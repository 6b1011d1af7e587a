"""What an allreduce has done so far; written by the thread that runs passes, read by any (the numbers may be of
different moments)."""

import time
from collections.abc import Callable
from dataclasses import dataclass

Clock = Callable[[], float]


@dataclass(slots=True)
class SumCounters:
    """Totals since the allreduce was made."""

    n_sums: int = 0
    seconds: float = 0.0
    """Time inside ``sum``, which includes waiting for slower ranks."""
    n_bytes_sent: int = 0
    """Encoded payloads, without headers."""
    n_bytes_received: int = 0

    def timed(self, clock: Clock = time.perf_counter) -> "Timed":
        """Counts one sum that takes as long as the ``with`` block."""
        return Timed(self, clock)


class Timed:
    """What ``SumCounters.timed`` enters; plain, because a sum of a small model takes microseconds."""

    __slots__ = ("_clock", "_counters", "_start_s")

    def __init__(self, counters: SumCounters, clock: Clock) -> None:
        self._counters, self._clock = counters, clock

    def __enter__(self) -> None:
        self._start_s = self._clock()

    def __exit__(self, *_: object) -> None:
        self._counters.seconds += self._clock() - self._start_s
        self._counters.n_sums += 1
