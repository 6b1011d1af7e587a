"""Where the pieces that every pass needs are: pins at fixed places, the others in a ring, in the order of passes.

Where everything fits, pieces on demand are pins like others; else they have slots (``pool``). Decides what to read next
and what to forget. Owns no memory and no thread; the window's lock guards it.
"""

import contextlib
import mmap
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence

from tpi.weights.files import round_up
from tpi.weights.stored import StoredPiece
from tpi.weights.streaming.arena import Arena, Slot
from tpi.weights.streaming.pins import PinPlan
from tpi.weights.streaming.ring import Ring


class Places:
    """The places of ``pieces`` in ``arena`` by ``plan``: behind its slots an empty ring, then the pins, all still to be
    read; then those for ``extras``, each where a page of the system begins, of which the first ``n_extras`` are pinned,
    too."""

    def __init__(
        self, pieces: Sequence[StoredPiece], arena: Arena, plan: PinPlan, extras: Sequence[int], n_extras: int
    ) -> None:
        self._pieces, self._arena, self._extras = pieces, arena, extras
        self.streamed = [piece.index for piece in pieces if not (piece.is_on_demand or piece.index in plan.pinned)]
        """Indexes of the pieces that pass through the ring."""
        self.queue: deque[Slot] = deque()
        """The places taken in the ring, in order; dropped ones among them that are still being read."""
        self._ring, self._ring_offset = Ring(plan.ring_bytes), plan.pool_bytes
        self._next_stream = 0
        self._pins: dict[int, Slot] = {}
        offset = plan.pool_bytes + plan.ring_bytes
        for index in sorted(plan.pinned):
            self._pins[index] = arena.slot(pieces[index], offset, is_pinned=True)
            offset += pieces[index].arena_bytes
        self._unread_pins = deque(self._pins)
        self.n_extras = 0
        """So many of the extras are pinned."""
        self._extra_offsets = [round_up(offset, mmap.PAGESIZE)]
        for index in extras:
            end = self._extra_offsets[-1] + pieces[index].arena_bytes
            self._extra_offsets.append(round_up(end, mmap.PAGESIZE))
        self.pin_extras(n_extras)

    @property
    def extra_bytes(self) -> int:
        """What pinned extras take of the arena."""
        return self._extra_offsets[self.n_extras] - self._extra_offsets[0]

    @property
    def n_bytes(self) -> int:
        """What all of that, slots included, takes of the arena."""
        return self._extra_offsets[self.n_extras]

    def find(self, index: int) -> Slot | None:
        """The place of a piece, which may not be loaded yet."""
        if index in self._pins:
            return self._pins[index]
        return next((slot for slot in self.queue if slot.piece.index == index and not slot.is_dropped), None)

    def pins(self) -> list[tuple[int, Slot]]:
        """The places of pinned pieces, extras included, by index."""
        return sorted(self._pins.items())

    def is_read(self, pin: Slot) -> None:
        """The pin has its bytes already."""
        pin.is_loaded = True
        self._unread_pins.remove(pin.piece.index)

    def slots(self) -> Iterator[Slot]:
        """All that are in use or will be."""
        yield from self.queue
        yield from self._pins.values()

    def hasten(self, indexes: Sequence[int]) -> None:
        """Of the pins that are still to be read, these come first."""
        for index in reversed(indexes if self._unread_pins else ()):
            if index in self._unread_pins:
                self._unread_pins.remove(index)
                self._unread_pins.appendleft(index)

    def take_next(self, position: int) -> Slot | None:
        """The slot to fill next for a pass at ``position``: what it needs first, be it a pin or streamed; a pin if the
        ring has no room."""
        pin = self._unread_pins[0] if self._unread_pins else None
        if self.streamed:
            index = self.streamed[self._next_stream]
            if pin is None or self._distance(position, index) < self._distance(position, pin):
                offset = self._ring.try_take(self._pieces[index].arena_bytes)
                if offset is not None:
                    self._next_stream = (self._next_stream + 1) % len(self.streamed)
                    slot = self._arena.slot(self._pieces[index], self._ring_offset + offset, is_pinned=False)
                    self.queue.append(slot)
                    return slot
        return self._pins[self._unread_pins.popleft()] if pin is not None else None

    def pin_extras(self, n_extras: int) -> None:
        """From now on so many extras are pinned, if they were fewer; between passes."""
        for number in range(self.n_extras, n_extras):
            index = self._extras[number]
            self.drop([slot for slot in self.queue if slot.piece.index == index])
            at = bisect_left(self.streamed, index)
            del self.streamed[at]
            self._next_stream -= at < self._next_stream
            self._pins[index] = self._arena.slot(self._pieces[index], self._extra_offsets[number], is_pinned=True)
            self._unread_pins.append(index)
        self._next_stream %= max(1, len(self.streamed))
        self._unread_pins = deque(sorted(self._unread_pins, key=self._turn))
        self.n_extras = max(self.n_extras, n_extras)

    def unpin_extras(self, n_extras: int) -> list[Slot]:
        """From now on only so many extras are pinned and the others stream; returns their former places, whose reads,
        if there are some, stop soon."""
        slots = [self._unpin(index) for index in self._extras[n_extras : self.n_extras]]
        self.n_extras = min(self.n_extras, n_extras)
        return slots

    def _unpin(self, index: int) -> Slot:
        slot = self._pins.pop(index)
        slot.is_pinned = False
        if slot.pending is not None:
            slot.pending.cancel()
        with contextlib.suppress(ValueError):
            self._unread_pins.remove(index)
        at = bisect_left(self.streamed, index)
        self.streamed.insert(at, index)
        self._next_stream += at < self._next_stream
        return slot

    def read_again(self, pin: Slot) -> None:
        """Reading the pin has failed."""
        self._unread_pins.appendleft(pin.piece.index)

    def drop_skipped(self, index: int) -> None:
        """Lets go of streamed pieces that lie before the next one that a pass at ``index`` needs."""
        if not self.streamed:
            return
        target = bisect_left(self.streamed, index) % len(self.streamed)
        waiting = [slot for slot in self.queue if not slot.is_dropped]
        indexes = [slot.piece.index for slot in waiting]
        if self.streamed[target] in indexes:
            self.drop(waiting[: indexes.index(self.streamed[target])])
        else:
            self.drop(waiting)
            self._next_stream = target

    def drop(self, slots: Sequence[Slot]) -> None:
        """Forgets streamed pieces; what is being read stops soon."""
        for slot in slots:
            slot.is_dropped = True
            if slot.pending is not None:
                slot.pending.cancel()
        self.reclaim()

    def reclaim(self) -> None:
        """Gives memory back to the ring in its order; what is still being read into stays."""
        while self.queue and self.queue[0].is_dropped and self.queue[0].pending is None:
            self.queue.popleft()
            self._ring.give_back()

    def cancel_reads(self) -> None:
        """Stops all reads soon."""
        for slot in self.slots():
            if slot.pending is not None:
                slot.pending.cancel()

    def _distance(self, position: int, index: int) -> int:
        return (index - position) % len(self._pieces)

    def _turn(self, pin: int) -> tuple[bool, int]:
        """Pins are read in this order: those that not every pass needs come last."""
        return self._pieces[pin].is_on_demand, pin
