"""How long a pass waits for its disk: measured per piece, and foretold for other pins and another ring.

The model is the steady state of the paper (TPI-LLM, arXiv 2410.00531, section on the memory scheduler) without its
inequalities: pieces are read one after the other, without a break as long as the ring has room, while earlier ones are
computed and added up; a cyclic pass is played through until it repeats itself. Its conditions follow: no wait if every
piece is read while the one before is computed and summed (tight), none either if that holds in sum over a layer and the
ring evens it out (loose), and what the disk needs longer than that is waited for.
"""

import statistics
import time
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tpi.weights.streaming.ring import Ring

_KEPT_PASSES = 3
_MAX_PLAYED = 8
_PRECISION = 1e-4


@dataclass(frozen=True)
class PassTimes:
    """What a pass does with each piece, in execution order: ``compute_s`` while it is held, ``gap_s`` from then until
    the next is asked for (sums, sampling); and the rate at which the disk reads."""

    compute_s: tuple[float, ...]
    gap_s: tuple[float, ...]
    bytes_per_s: float

    @property
    def work_s(self) -> float:
        """A pass that never waits."""
        return sum(self.compute_s) + sum(self.gap_s)


def wait_s(sizes: Sequence[int], times: PassTimes, pinned: Collection[int], ring_bytes: int) -> float:
    """Seconds that a pass in steady state waits for pieces of ``sizes`` bytes when all that are not pinned pass through
    a ring of ``ring_bytes``, which must hold the largest of them."""
    streamed = [index for index in range(len(sizes)) if index not in pinned]
    if not streamed:
        return 0.0
    ring, arrivals = Ring(ring_bytes), deque[float]()
    turn, disk_s, now_s = 0, 0.0, 0.0

    def read_ahead() -> None:
        nonlocal turn, disk_s
        while ring.try_take(size := sizes[streamed[turn]]) is not None:
            disk_s = max(disk_s, now_s) + size / times.bytes_per_s
            arrivals.append(disk_s)
            turn = (turn + 1) % len(streamed)

    read_ahead()
    pass_s = 0.0
    for _ in range(_MAX_PLAYED):
        began_s, before_s = now_s, pass_s
        for index, (compute_s, gap_s) in enumerate(zip(times.compute_s, times.gap_s, strict=True)):
            if index in pinned:
                now_s += compute_s + gap_s
                continue
            now_s = max(now_s, arrivals.popleft()) + compute_s
            ring.give_back()
            read_ahead()
            now_s += gap_s
        pass_s = now_s - began_s
        if abs(pass_s - before_s) <= _PRECISION * pass_s:
            break
    return max(0.0, pass_s - times.work_s)


class PassClock:
    """Times the pieces of the latest complete passes, of ``n_pieces`` those that are not ``on_demand``. Belongs to the
    thread of passes, which tells of no other pieces."""

    def __init__(self, n_pieces: int, on_demand: Collection[int] = ()) -> None:
        self.n_complete = 0
        """Passes that have used every piece, in order."""
        self._n_pieces = n_pieces
        self._order = [index for index in range(n_pieces) if index not in on_demand]
        self._passes: deque[list[tuple[float, float]]] = deque(maxlen=_KEPT_PASSES)
        self._current: list[tuple[float, float]] = []
        self._is_in_order = True
        self._last = -1
        self._ready_s = self._released_s = self._left_out_s = 0.0

    def ask(self, index: int) -> bool:
        """A piece is asked for; returns whether a pass begins with it."""
        is_new = index <= self._last
        if self._last >= 0:
            gap_s = time.perf_counter() - self._released_s - self._left_out_s
            self._current.append((self._released_s - self._ready_s, gap_s))
        if is_new:
            if len(self._current) == len(self._order) and self._is_in_order:
                self._passes.append(self._current)
                self.n_complete += 1
            self._current, self._is_in_order = [], True
        number = len(self._current)
        self._is_in_order &= number < len(self._order) and self._order[number] == index
        self._last = index
        return is_new

    def ready(self) -> None:
        """The piece is there."""
        self._ready_s = time.perf_counter()

    def release(self) -> None:
        """It is not needed any more."""
        self._released_s, self._left_out_s = time.perf_counter(), 0.0

    def leave_out(self, waited_s: float) -> None:
        """So long a wait for a piece on demand was, which is no work of the pass: while another piece is held, or
        between two."""
        if self._ready_s > self._released_s:
            self._ready_s += waited_s
        else:
            self._left_out_s += waited_s

    def times(self, bytes_per_s: float) -> PassTimes:
        """Medians over the latest complete passes, of which there must be one; pieces on demand take no time."""
        compute_s, gap_s = [0.0] * self._n_pieces, [0.0] * self._n_pieces
        for index, piece in zip(self._order, zip(*self._passes, strict=True), strict=True):
            compute_s[index] = statistics.median(time_s for time_s, _ in piece)
            gap_s[index] = statistics.median(time_s for _, time_s in piece)
        return PassTimes(tuple(compute_s), tuple(gap_s), bytes_per_s)
