"""Has the pieces of a window read into their places and slots, what is needed first before the rest.

Owns the reader. The window's lock guards it; the reader's threads take that lock when a read is over.
"""

import threading
import time
from collections.abc import Sequence

from tpi.errors import Cancelled
from tpi.trace import Kind, Trace
from tpi.weights.streaming.arena import Arena, Slot
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.places import Places
from tpi.weights.streaming.pool import Pool

_IN_FLIGHT_BYTES = 32 << 20
"""Reads are started as long as less than this is being read: enough for any disk, and soon over when a pass stops."""


class Reads:
    """Reads into ``arena`` what ``places`` and ``pool`` say, once :meth:`advance` begins it, and goes on by itself
    whenever a read is over; whoever waits for ``changed`` is woken then."""

    def __init__(
        self, reader: PieceReader, arena: Arena, places: Places, pool: Pool, changed: threading.Condition
    ) -> None:
        self.reader, self.places, self.pool = reader, places, pool
        self._arena, self._changed = arena, changed
        self.trace: Trace | None = None
        self.read_bytes = 0
        self.streamed_bytes = 0
        """Of pieces that are not pinned."""
        self._position = 0
        self._is_paused = False
        self._error: Exception | None = None
        self._in_flight_bytes = 0
        self._reading_s = self._since_s = 0.0

    @property
    def reading_s(self) -> float:
        """Seconds in which anything was being read, until now."""
        return self._reading_s + (time.perf_counter() - self._since_s if self._in_flight_bytes else 0.0)

    def advance(self) -> None:
        """Starts as many reads as there is room for."""
        while self._in_flight_bytes < _IN_FLIGHT_BYTES and self._error is None and not self._is_paused:
            slot = self.pool.take_next() if self.pool.wanted else None
            slot = slot or self.places.take_next(self._position)
            if slot is None:
                return
            self._start(slot)

    def move_to(self, index: int) -> None:
        """A pass is at this piece, which is not on demand, and expects none that is."""
        self._position = index
        if self.pool.wanted:
            self.pool.want(())
        self.places.drop_skipped(index)
        self.advance()

    def expect(self, indexes: Sequence[int]) -> None:
        """These pieces on demand are read first, in this order."""
        self.places.hasten(indexes)
        if self.pool.want(indexes):
            self.advance()

    def find(self, index: int) -> Slot | None:
        """The place or slot of a piece that is needed now, which may not be loaded yet."""
        return self.pool.use(index) if index in self.pool else self.places.find(index)

    def raise_failure(self, index: int) -> None:
        """Raises what went wrong with piece ``index``, which is needed now, or with any that every pass needs; once.
        Then that is read again."""
        if self._error is not None:
            error, self._error = self._error, None
            self.places.drop(self.places.queue)
            raise error
        if index in self.pool.failures:
            raise self.pool.failures.pop(index)

    def stop(self) -> None:
        """Starts no reads any more, and waits for those that are under way, which stop soon."""
        self._is_paused = True
        self.places.cancel_reads()
        self.pool.cancel_reads()
        self._changed.wait_for(lambda: self._in_flight_bytes == 0)

    def resume(self, places: Places) -> None:
        """Goes on after :meth:`stop`, with other places."""
        self.places, self._is_paused = places, False

    def _start(self, slot: Slot) -> None:
        started_s = time.perf_counter()
        if self._in_flight_bytes == 0:
            self._since_s = started_s
        self._in_flight_bytes += slot.piece.arena_bytes
        memory = self._arena.memory_of(slot)
        slot.pending = self.reader.start(slot.piece, memory, lambda error: self._end(slot, error, started_s))

    # The reader's threads.

    def _end(self, slot: Slot, error: Exception | None, started_s: float) -> None:
        n_bytes = slot.piece.arena_bytes
        if self.trace is not None:
            self.trace.add(Kind.READ, started_s, time.perf_counter(), block=slot.piece.index, n_bytes=n_bytes)
        with self._changed:
            slot.pending = None
            reading_s = self.reading_s
            self._in_flight_bytes -= n_bytes
            if self._in_flight_bytes == 0:
                self._reading_s = reading_s
            if error is None:
                slot.is_loaded = True
                self.read_bytes += n_bytes
                self.streamed_bytes += 0 if slot.is_pinned else n_bytes
            self._sort_out(slot, error)
            self.advance()
            self._changed.notify_all()

    def _sort_out(self, slot: Slot, error: Exception | None) -> None:
        if slot.piece.is_on_demand and not slot.is_pinned:
            self.pool.on_read(slot, error)
            return
        if error is not None and slot.is_pinned:
            self.places.read_again(slot)
        if error is not None and not isinstance(error, Cancelled):
            self._error = error
        self.places.reclaim()
