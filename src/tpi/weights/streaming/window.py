"""The memory for weights: a hard budget in bytes, some pieces pinned in it, the others streaming through a ring, and
slots for pieces on demand.

The thread that runs passes holds pieces one at a time; the reader's threads fill memory. One lock guards all state. The
window owns its reader and an arena of at most the budget and what it is lent beyond that. After some passes it knows
how long reading and computing take; if other pins would wait less, it lays the arena out anew, once, between two
passes. What its bytes are for is decided in ``pins``.
"""

import mmap
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from types import TracebackType
from typing import Self

from tpi.errors import Cancelled
from tpi.trace import Trace
from tpi.weights.files import PAGE_BYTES, round_up
from tpi.weights.stored import StoredWeights
from tpi.weights.streaming.arena import Arena, HeldPiece, Slot
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.legacy import Legacy, inherit
from tpi.weights.streaming.loan import Loan
from tpi.weights.streaming.pacing import PassClock
from tpi.weights.streaming.pins import minimum_budget, plan_again, plan_pins
from tpi.weights.streaming.places import Places
from tpi.weights.streaming.pool import Pool
from tpi.weights.streaming.reads import Reads
from tpi.weights.streaming.stats import WindowStats, WindowUse, use_of

_PASSES_TO_MEASURE = 4
"""Complete passes before the pins are reconsidered; the first, which reads them, does not count."""


class _Hold:
    """What ``with`` enters."""

    __slots__ = ("_hints", "_index", "_window")

    def __init__(self, window: "Window", index: int, hints: Sequence[int]) -> None:
        self._window, self._index, self._hints = window, index, hints

    def __enter__(self) -> HeldPiece:
        return self._window._wait_for(self._index, self._hints)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._window._release(self._index)


class Window:
    """Makes pieces of ``stored`` available in memory, never using more than ``budget_bytes`` for them.

    Reading begins at once and goes on, in order and around the corner into the next pass, whenever there is room. Takes
    the reader over and closes it. ``lent_bytes`` more are used for pins of what every pass needs until :meth:`shrink`
    wants them back, and again when :meth:`grow` lends them anew. What of ``legacy`` is to be pinned here is copied
    instead of read, and given up there piece by piece. So many as ``least_slots`` pieces on demand can be in memory at
    once, even if others must stream for that.

    Raises:
        MemoryBudgetError: the budget is less than :meth:`minimum_bytes`, or the system does not give so much memory.
    """

    def __init__(
        self,
        stored: StoredWeights,
        reader: PieceReader,
        budget_bytes: int,
        lent_bytes: int = 0,
        legacy: Legacy | None = None,
        least_slots: int = 1,
    ) -> None:
        self._pieces = stored.pieces
        self._on_demand = _on_demand(stored)
        self._sizes = [piece.arena_bytes for piece in stored.pieces]
        self._budget_bytes = budget_bytes // PAGE_BYTES * PAGE_BYTES
        try:
            self._plan = plan_pins(self._sizes, self._budget_bytes, self._on_demand, least_slots)
            self._loan = Loan(stored.pieces, self._plan, lent_bytes)
            self._extras = self._loan.extras(self._plan)
            self._arena = Arena(round_up(self._plan.total_bytes, mmap.PAGESIZE) + self._loan.most_bytes)
        except BaseException:
            reader.close()
            raise
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        pool = Pool(stored.pieces, self._arena, self._plan)
        self._reads = Reads(reader, self._arena, self._place(), pool, self._changed)
        self._clock = PassClock(len(stored.pieces), self._on_demand)
        self._is_measured = self._is_closed = self._is_interrupted = False
        self._holding: Slot | None = None
        self._demanding: Slot | None = None
        self._wait_s = 0.0
        self._n_demanded = self._n_hits = 0
        with self._lock:
            if legacy is not None:
                inherit(legacy, self._reads.places, self._arena)
            self._reads.advance()

    @staticmethod
    def minimum_bytes(stored: StoredWeights, least_slots: int = 1) -> int:
        """The smallest possible budget."""
        return minimum_budget([piece.arena_bytes for piece in stored.pieces], _on_demand(stored), least_slots)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def trace(self) -> Trace | None:
        """Told when pieces are read."""
        return self._reads.trace

    @trace.setter
    def trace(self, trace: Trace | None) -> None:
        self._reads.trace = trace

    def hold(self, index: int, hints: Sequence[int] = ()) -> _Hold:
        """A context manager that waits until the piece is in memory and keeps it there until it is left.

        One piece at a time, from one thread; while it is held, pieces on demand may be, in any order, one at a time.
        Streamed pieces that a pass skips are dropped; an index at or before the last one begins a new pass. ``hints``
        are pieces on demand that will be held next, in order, as far as is known; they replace earlier ones, and may be
        wrong. Entering raises:

            ModelFileError: a read of this piece failed, or since the last ``hold`` one of a piece that every pass
                needs; the next ``hold`` tries again.
            Cancelled: the window is closed, or was interrupted.
        """
        return _Hold(self, index, hints)

    def interrupt(self) -> None:
        """Waits for pieces, now and later, raise ``Cancelled`` until :meth:`allow`; from any thread."""
        with self._lock:
            self._is_interrupted = True
            self._changed.notify_all()

    def allow(self) -> None:
        """Pieces can be waited for again."""
        with self._lock:
            self._is_interrupted = False

    def bequeath(self, pieces: Mapping[int, int]) -> Legacy:
        """Stops reading for good and keeps of the pinned pieces only those that a successor's ``pieces``, by its
        indexes, are equal to. Blocks until reads that were under way have ended; to be closed afterwards."""
        with self._lock:
            self._reads.stop()
            n_bytes = self._plan.pool_bytes + self._plan.ring_bytes
            self._arena.forget(0, n_bytes // mmap.PAGESIZE * mmap.PAGESIZE)
            return Legacy(self._reads.places, self._arena, pieces, self.close)

    def try_resident(self) -> tuple[HeldPiece, ...] | None:
        """All pieces, if every one is pinned for good and loaded; None otherwise. Valid until :meth:`close`. Does not
        wait."""
        with self._lock:
            if len(self._plan.pinned) < len(self._pieces) or self._is_closed:
                return None
            held = [slot.held for _, slot in self._reads.places.pins() if slot.is_loaded]
            return tuple(held) if len(held) == len(self._pieces) else None

    def stats(self) -> WindowStats:
        """Any thread."""
        with self._lock:
            return WindowStats(
                n_pieces=len(self._pieces),
                pinned_pieces=len(self._plan.pinned) + self._reads.places.n_extras,
                pinned_bytes=self._plan.pinned_bytes + self._reads.places.extra_bytes,
                ring_bytes=self._plan.ring_bytes,
                pool_bytes=self._plan.pool_bytes,
                read_bytes=self._reads.read_bytes,
                streamed_bytes=self._reads.streamed_bytes,
                demanded=self._n_demanded,
                hits=self._n_hits,
                wait_s=self._wait_s,
                reading_s=self._reads.reading_s,
                way=self._reads.reader.way,
                is_direct=self._reads.reader.is_direct,
            )

    def use(self) -> WindowUse:
        """What the memory is used for now; takes time in proportion to the pieces. Any thread."""
        with self._lock:
            slots = chain(self._reads.places.slots(), self._reads.pool.slots())
            held = [slot for slot in (self._holding, self._demanding) if slot is not None]
            return use_of(slots, self._plan.total_bytes + self._reads.places.extra_bytes, held)

    def close(self) -> None:
        """Stops reading, waits until no piece is held, and frees the memory; may be called again. Any thread.

        A ``hold`` that is waiting raises ``Cancelled``. Not to be called while holding a piece oneself.
        """
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()
            self._reads.stop()
            self._changed.wait_for(lambda: self._holding is None and self._demanding is None)
        self._reads.reader.close()
        self._arena.close()

    # The thread of passes.

    def shrink(self, n_bytes: int) -> None:
        """Gives lent memory back until at most ``n_bytes`` or the budget are in use: pins stream from now on. Between
        passes; waits for reads that it stops."""
        with self._lock:
            self._loan.shrink(n_bytes - self._budget_bytes)
            slots = self._reads.places.unpin_extras(self._loan.n_held(self._extras))
            self._changed.wait_for(lambda: all(slot.pending is None for slot in slots))
            for slot in slots if not self._is_closed else ():
                self._arena.forget(slot.offset, slot.piece.arena_bytes)

    def grow(self, n_bytes: int) -> None:
        """Lends memory again: up to ``n_bytes`` may be in use, but no more than at first. Between passes; does not
        wait."""
        with self._lock:
            self._loan.grow(n_bytes - self._budget_bytes)
            self._reads.places.pin_extras(self._loan.n_held(self._extras))
            self._reads.advance()

    def _wait_for(self, index: int, hints: Sequence[int]) -> HeldPiece:
        if index in self._on_demand:
            return self._demand(index, hints)
        begins_pass = self._clock.ask(index)
        is_due = not self._is_measured and self._clock.n_complete >= _PASSES_TO_MEASURE
        if begins_pass and is_due and self._reads.places.streamed:
            self._is_measured = True
            self._reconsider_pins()
        with self._lock:
            assert self._holding is None, "one piece at a time"
            self._raise_if_stopped(index)
            self._reads.move_to(index)
            slot = self._reads.places.find(index)
            if slot is None or not slot.is_loaded:
                slot = self._wait_until_loaded(index)
            if hints:
                self._reads.expect(hints)
            self._holding = slot
            self._clock.ready()
            return slot.held

    def _demand(self, index: int, hints: Sequence[int]) -> HeldPiece:
        """The same for a piece on demand."""
        with self._lock:
            assert self._demanding is None, "one piece on demand at a time"
            self._raise_if_stopped(index)
            self._n_demanded += 1
            self._reads.expect((index, *hints))
            slot = self._reads.find(index)
            if slot is not None and slot.is_loaded:
                self._n_hits += 1
            else:
                waited_s = self._wait_s
                slot = self._wait_until_loaded(index)
                self._clock.leave_out(self._wait_s - waited_s)
            self._demanding = slot
            return slot.held

    def _wait_until_loaded(self, index: int) -> Slot:
        started = time.perf_counter()
        self._reads.advance()  # nothing may be under way: an error stops it
        while True:
            slot = self._reads.find(index)
            if slot is not None and slot.is_loaded:
                self._wait_s += time.perf_counter() - started
                return slot
            self._changed.wait()
            self._raise_if_stopped(index)

    def _release(self, index: int) -> None:
        if index in self._on_demand:
            with self._lock:
                self._demanding = None
                if self._is_closed:
                    self._changed.notify_all()
            return
        slot = self._holding
        assert slot is not None, "nothing is held"
        self._clock.release()
        with self._lock:
            self._holding = None
            if not slot.is_pinned:
                slot.is_dropped = True
                self._reads.places.reclaim()
                self._reads.advance()
            if self._is_closed:
                self._changed.notify_all()

    def _raise_if_stopped(self, index: int) -> None:
        if self._is_closed or self._is_interrupted:
            raise Cancelled("the window of weights was closed")
        self._reads.raise_failure(index)

    def _reconsider_pins(self) -> None:
        """Lays the arena out anew if measured times promise that passes wait less with other pins."""
        stats = self.stats()
        if not stats.reading_s:
            return
        times = self._clock.times(stats.read_bytes / stats.reading_s)
        plan = plan_again(self._sizes, times, self._plan, self._loan.held, self._on_demand)
        if plan is None:
            return
        with self._lock:
            self._reads.stop()
            if self._is_closed:
                return
            self._plan, self._extras = plan, self._loan.extras(plan)
            self._reads.resume(self._place())
            self._arena.forget_from(self._reads.places.n_bytes)

    def _place(self) -> Places:
        """Places by the plan, with what the loan holds now."""
        return Places(self._pieces, self._arena, self._plan, self._extras, self._loan.n_held(self._extras))


def _on_demand(stored: StoredWeights) -> frozenset[int]:
    return frozenset(piece.index for piece in stored.pieces if piece.is_on_demand)
