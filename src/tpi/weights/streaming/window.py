"""The memory for weights: a hard budget in bytes, some pieces pinned in it, the others streaming through a ring.

The thread that runs passes holds pieces one at a time; the reader's threads fill memory. One lock guards all state. The
window owns its reader and an arena of at most the budget and what it is lent beyond that. After some passes it knows
how long reading and computing take; if other pins would wait less, it lays the arena out anew, once, between two
passes.
"""

import mmap
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tpi.errors import Cancelled
from tpi.trace import Kind, Trace
from tpi.weights.files import PAGE_BYTES, round_up
from tpi.weights.stored import StoredWeights
from tpi.weights.streaming.arena import CAN_FORGET, Arena, HeldPiece, Slot
from tpi.weights.streaming.disk import PieceReader, ReadWay
from tpi.weights.streaming.pacing import PassClock
from tpi.weights.streaming.pins import PinPlan, extra_pins, minimum_budget, n_fitting, plan_again, plan_pins
from tpi.weights.streaming.places import Places, WindowUse

_IN_FLIGHT_BYTES = 32 << 20
"""Reads are started as long as less than this is being read: enough for any disk, and soon over when a pass stops."""

_PASSES_TO_MEASURE = 4
"""Complete passes before the pins are reconsidered; the first, which reads them, does not count."""


@dataclass(frozen=True)
class WindowStats:
    """Sizes, and sums since the window was made. ``wait_s`` is time that ``hold`` spent waiting for the disk,
    ``reading_s`` time in which anything was being read."""

    n_pieces: int
    pinned_pieces: int
    pinned_bytes: int
    ring_bytes: int
    read_bytes: int
    streamed_bytes: int
    wait_s: float
    reading_s: float
    way: ReadWay
    is_direct: bool

    @property
    def disk_mode(self) -> str:
        """In words, with the rate that was measured: at the trial of the disk, or since."""
        rate = self.way.bytes_per_s or (self.read_bytes / self.reading_s if self.reading_s else 0.0)
        chunk = f"{self.way.chunk_bytes / (1 << 20):.3g} MiB"
        return f"{'direct' if self.is_direct else 'buffered'} {chunk} x {self.way.n_readers}, {rate / 1e6:,.0f} MB/s"


class Legacy:
    """Pieces in the memory of a window that another takes over, by the successor's indexes."""

    def __init__(self, window: "Window", pieces: Mapping[int, int]) -> None:
        self._window, self._pieces = window, pieces

    def find(self, index: int, like: Slot) -> memoryview | None:
        """The bytes of the successor's piece, if they are there and lie as in its slot; to be released."""
        return self._window._pinned_memory(self._pieces[index], like) if index in self._pieces else None

    def give_up(self, index: int) -> None:
        """The piece is not needed here any more."""
        if index in self._pieces:
            self._window._give_up(self._pieces[index])

    def close(self) -> None:
        """Closes the old window."""
        self._window.close()


class _Hold:
    """What ``with`` enters."""

    __slots__ = ("_index", "_window")

    def __init__(self, window: "Window", index: int) -> None:
        self._window = window
        self._index = index

    def __enter__(self) -> HeldPiece:
        return self._window._wait_for(self._index)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._window._release()


class Window:
    """Makes pieces of ``stored`` available in memory, never using more than ``budget_bytes`` for them.

    Reading begins at once and goes on, in order and around the corner into the next pass, whenever there is room. Takes
    the reader over and closes it. ``lent_bytes`` more are used for pins until :meth:`shrink` wants them back, and again
    when :meth:`grow` lends them anew. What of ``legacy`` is to be pinned here is copied instead of read, and given up
    there piece by piece.

    Raises:
        MemoryBudgetError: the budget is less than :meth:`minimum_bytes`, or the system does not give so much memory.
    """

    def __init__(
        self,
        stored: StoredWeights,
        reader: PieceReader,
        budget_bytes: int,
        lent_bytes: int = 0,
        legacy: "Legacy | None" = None,
    ) -> None:
        self._sizes = [piece.arena_bytes for piece in stored.pieces]
        self._extra_sizes = [round_up(size, mmap.PAGESIZE) for size in self._sizes]
        self._budget_bytes = budget_bytes // PAGE_BYTES * PAGE_BYTES
        try:
            self._plan = plan_pins(self._sizes, self._budget_bytes)
            self._most_lent_bytes = self._lent_bytes = min(lent_bytes, sum(self._extra_sizes)) if CAN_FORGET else 0
            self._extras = extra_pins(self._extra_sizes, self._plan, self._most_lent_bytes)
            self._arena = Arena(round_up(self._plan.total_bytes, mmap.PAGESIZE) + self._most_lent_bytes)
        except BaseException:
            reader.close()
            raise
        self._pieces = stored.pieces
        self._reader = reader
        self._changed = threading.Condition()
        self._places = Places(self._pieces, self._arena, self._plan, self._extras, len(self._extras))
        self._clock = PassClock(len(stored.pieces))
        self._is_measured = False
        self._position = 0
        self._holding: Slot | None = None
        self._in_flight_bytes = 0
        self._error: Exception | None = None
        self._is_paused = self._is_closed = False
        self._read_bytes = self._streamed_bytes = 0
        self._wait_s = self._reading_s = self._reading_since_s = 0.0
        self._is_interrupted = False
        self.trace: Trace | None = None
        """Told when pieces are read."""
        with self._changed:
            if legacy is not None:
                self._inherit(legacy)
            self._advance()

    @staticmethod
    def minimum_bytes(stored: StoredWeights) -> int:
        """The smallest possible budget."""
        return minimum_budget([piece.arena_bytes for piece in stored.pieces])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def hold(self, index: int) -> _Hold:
        """A context manager that waits until the piece is in memory and keeps it there until it is left.

        One piece at a time, from one thread. Streamed pieces that a pass skips are dropped; an index at or before the
        last one begins a new pass. Entering raises:

            ModelFileError: a read failed since the last ``hold``; the next ``hold`` tries again.
            Cancelled: the window is closed, or was interrupted.
        """
        return _Hold(self, index)

    def interrupt(self) -> None:
        """Waits for pieces, now and later, raise ``Cancelled`` until :meth:`allow`; from any thread."""
        with self._changed:
            self._is_interrupted = True
            self._changed.notify_all()

    def allow(self) -> None:
        """Pieces can be waited for again."""
        with self._changed:
            self._is_interrupted = False

    def bequeath(self, pieces: Mapping[int, int]) -> "Legacy":
        """Stops reading for good and keeps of the pinned pieces only those that a successor's ``pieces``, by its
        indexes, are equal to. Blocks until reads that were under way have ended; to be closed afterwards."""
        with self._changed:
            self._is_paused = True
            self._places.cancel_reads()
            self._changed.wait_for(lambda: self._in_flight_bytes == 0)
            kept = set(pieces.values())
            self._arena.forget(0, self._plan.ring_bytes // mmap.PAGESIZE * mmap.PAGESIZE)
            for index in range(len(self._pieces)):
                if index not in kept:
                    self._give_up(index)
        return Legacy(self, dict(pieces))

    def try_resident(self) -> tuple[HeldPiece, ...] | None:
        """All pieces, if every one is pinned for good and loaded; None otherwise. Valid until :meth:`close`. Does not
        wait."""
        with self._changed:
            if self._places.streamed or self._places.n_extras or self._is_closed:
                return None
            slots = [self._places.find(index) for index in range(len(self._pieces))]
            held = [slot.held for slot in slots if slot is not None and slot.is_loaded]
            return tuple(held) if len(held) == len(slots) else None

    def stats(self) -> WindowStats:
        """Any thread."""
        with self._changed:
            return WindowStats(
                n_pieces=len(self._pieces),
                pinned_pieces=len(self._plan.pinned) + self._places.n_extras,
                pinned_bytes=self._plan.pinned_bytes + self._places.extra_bytes,
                ring_bytes=self._plan.ring_bytes,
                read_bytes=self._read_bytes,
                streamed_bytes=self._streamed_bytes,
                wait_s=self._wait_s,
                reading_s=self._reading_until_now(),
                way=self._reader.way,
                is_direct=self._reader.is_direct,
            )

    def use(self) -> WindowUse:
        """What the memory is used for now; takes time in proportion to the pieces. Any thread."""
        with self._changed:
            return self._places.use(self._plan.total_bytes + self._places.extra_bytes, self._holding)

    def close(self) -> None:
        """Stops reading, waits until no piece is held, and frees the memory; may be called again. Any thread.

        A ``hold`` that is waiting raises ``Cancelled``. Not to be called while holding a piece oneself.
        """
        with self._changed:
            self._is_closed = True
            self._places.cancel_reads()
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._holding is None and self._in_flight_bytes == 0)
        self._reader.close()
        self._arena.close()

    # The thread of passes.

    def shrink(self, n_bytes: int) -> None:
        """Gives lent memory back until at most ``n_bytes`` or the budget are in use: pins stream from now on. Between
        passes; waits for reads that it stops."""
        with self._changed:
            self._lent_bytes = max(0, min(self._lent_bytes, n_bytes - self._budget_bytes))
            slots = self._places.unpin_extras(self._n_fitting(self._extras))
            self._changed.wait_for(lambda: all(slot.pending is None for slot in slots))
            for slot in slots if not self._is_closed else ():
                self._arena.forget(slot.offset, slot.piece.arena_bytes)

    def grow(self, n_bytes: int) -> None:
        """Lends memory again: up to ``n_bytes`` may be in use, but no more than at first. Between passes; does not
        wait."""
        with self._changed:
            n_lent = min(n_bytes - self._budget_bytes, self._most_lent_bytes)
            self._lent_bytes = max(self._lent_bytes, n_lent)
            self._places.pin_extras(self._n_fitting(self._extras))
            self._advance()

    def _wait_for(self, index: int) -> HeldPiece:
        begins_pass = self._clock.ask(index)
        is_due = not self._is_measured and self._clock.n_complete >= _PASSES_TO_MEASURE
        if begins_pass and is_due and self._places.streamed:
            self._is_measured = True
            self._reconsider_pins()
        with self._changed:
            assert self._holding is None, "one piece at a time"
            self._raise_if_stopped()
            self._position = index
            self._places.drop_skipped(index)
            self._advance()
            slot = self._places.find(index)
            if slot is None or not slot.is_loaded:
                slot = self._wait_until_loaded(index)
            self._holding = slot
            self._clock.ready()
            return slot.held

    def _wait_until_loaded(self, index: int) -> Slot:
        started = time.perf_counter()
        while True:
            slot = self._places.find(index)
            if slot is not None and slot.is_loaded:
                self._wait_s += time.perf_counter() - started
                return slot
            self._changed.wait()
            self._raise_if_stopped()

    def _release(self) -> None:
        self._clock.release()
        with self._changed:
            slot, self._holding = self._holding, None
            assert slot is not None, "nothing is held"
            if not slot.is_pinned:
                slot.is_dropped = True
                self._places.reclaim()
                self._advance()
            if self._is_closed:
                self._changed.notify_all()

    def _raise_if_stopped(self) -> None:
        if self._is_closed or self._is_interrupted:
            raise Cancelled("the window of weights was closed")
        if self._error is not None:
            error, self._error = self._error, None
            self._places.drop(self._places.queue)
            raise error

    def _reconsider_pins(self) -> None:
        """Lays the arena out anew if measured times promise that passes wait less with other pins."""
        stats = self.stats()
        if not stats.reading_s:
            return
        times = self._clock.times(stats.read_bytes / stats.reading_s)
        plan = plan_again(self._sizes, times, self._plan, self._lent_pins)
        if plan is None:
            return
        with self._changed:
            self._is_paused = True
            self._places.cancel_reads()
            self._changed.wait_for(lambda: self._in_flight_bytes == 0)
            self._is_paused = False
            if self._is_closed:
                return
            self._plan, self._extras = plan, extra_pins(self._extra_sizes, plan, self._most_lent_bytes)
            self._places = Places(self._pieces, self._arena, plan, self._extras, self._n_fitting(self._extras))
            self._arena.forget_from(self._places.n_bytes)

    def _lent_pins(self, plan: PinPlan) -> Sequence[int]:
        """The pieces that lent memory would hold beside a plan's."""
        extras = extra_pins(self._extra_sizes, plan, self._most_lent_bytes)
        return extras[: self._n_fitting(extras)]

    def _inherit(self, legacy: "Legacy") -> None:
        """Copies what a predecessor has of this window's pins; never more than one piece is in memory twice."""
        for index, slot in self._places.pins():
            content = legacy.find(index, slot)
            if content is not None:
                self._arena.memory_of(slot)[:] = content
                content.release()
                self._places.is_read(slot)
            legacy.give_up(index)

    def _pinned_memory(self, index: int, like: Slot) -> memoryview | None:
        with self._changed:
            slot = self._places.find(index)
            if slot is None or not (slot.is_pinned and slot.is_loaded):
                return None
            theirs, ours = slot.piece, like.piece
            is_same = (theirs.arena_bytes, theirs.part_offsets) == (ours.arena_bytes, ours.part_offsets)
            return self._arena.memory_of(slot) if is_same else None

    def _give_up(self, index: int) -> None:
        slot = self._places.find(index)
        if slot is not None and slot.is_pinned and (slot.offset | slot.piece.arena_bytes) % mmap.PAGESIZE == 0:
            self._arena.forget(slot.offset, slot.piece.arena_bytes)

    # Any thread, with the lock.

    def _n_fitting(self, extras: Sequence[int]) -> int:
        return n_fitting(self._extra_sizes, extras, self._lent_bytes)

    def _advance(self) -> None:
        """Starts as many reads as there is room for."""
        while self._in_flight_bytes < _IN_FLIGHT_BYTES and self._error is None:
            if self._is_closed or self._is_paused:
                return
            slot = self._places.take_next(self._position)
            if slot is None:
                return
            self._start(slot)

    def _start(self, slot: Slot) -> None:
        if self._in_flight_bytes == 0:
            self._reading_since_s = time.perf_counter()
        self._in_flight_bytes += slot.piece.arena_bytes
        memory = self._arena.memory_of(slot)
        started = time.perf_counter()
        slot.pending = self._reader.start(slot.piece, memory, lambda error: self._on_read(slot, error, started))

    def _reading_until_now(self) -> float:
        return self._reading_s + (time.perf_counter() - self._reading_since_s if self._in_flight_bytes else 0.0)

    # The reader's threads.

    def _on_read(self, slot: Slot, error: Exception | None, started: float) -> None:
        if self.trace is not None:
            n_bytes = slot.piece.arena_bytes
            self.trace.add(Kind.READ, started, time.perf_counter(), block=slot.piece.index, n_bytes=n_bytes)
        with self._changed:
            slot.pending = None
            reading_s = self._reading_until_now()
            self._in_flight_bytes -= slot.piece.arena_bytes
            if self._in_flight_bytes == 0:
                self._reading_s = reading_s
            if error is None:
                slot.is_loaded = True
                self._read_bytes += slot.piece.arena_bytes
                self._streamed_bytes += 0 if slot.is_pinned else slot.piece.arena_bytes
            else:
                if slot.is_pinned:
                    self._places.read_again(slot)
                if not isinstance(error, Cancelled):
                    self._error = error
            self._places.reclaim()
            self._advance()
            self._changed.notify_all()
