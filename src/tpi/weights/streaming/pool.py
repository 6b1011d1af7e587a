"""Slots of equal size for pieces on demand: which of them are in memory, what is read next, and what must go for it.

What was loaded stays until its slot is needed; then the least recently used goes that is not wanted. Owns no memory and
no thread; the window's lock guards it.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice

from tpi.errors import Cancelled
from tpi.weights.stored import StoredPiece
from tpi.weights.streaming.arena import Arena, Slot
from tpi.weights.streaming.pins import PinPlan


class Pool:
    """The plan's slots at the start of ``arena``, for those of ``pieces`` that are on demand; it has no pieces where
    the plan has no slots."""

    def __init__(self, pieces: Sequence[StoredPiece], arena: Arena, plan: PinPlan) -> None:
        self._arena, self._n_slots = arena, plan.n_slots
        self._pieces = {piece.index: piece for piece in pieces if piece.is_on_demand} if plan.n_slots else {}
        self._free = [number * plan.slot_bytes for number in reversed(range(plan.n_slots))]
        self._loaded: OrderedDict[int, Slot] = OrderedDict()
        """By index, the least recently used first."""
        self._reading: dict[int, Slot] = {}
        self.wanted: dict[int, None] = {}
        """Indexes, in the order in which they are needed; those of other pieces do no harm."""
        self.failures: dict[int, Exception] = {}
        """Why a piece that is wanted could not be read. It is not tried again until it is taken out, or not wanted any
        more."""

    def __contains__(self, index: object) -> bool:
        return index in self._pieces

    def want(self, indexes: Sequence[int]) -> bool:
        """From now on these pieces are wanted, in this order, as many as there are slots: they stay, or are to be read;
        nothing else is. Returns whether any is not in memory yet."""
        wanted = dict.fromkeys(indexes)
        if len(wanted) > self._n_slots:
            wanted = dict.fromkeys(islice(wanted, self._n_slots))
        self.wanted = wanted
        if self.failures:
            self.failures = {index: error for index, error in self.failures.items() if index in wanted}
        return not wanted.keys() <= self._loaded.keys()

    def use(self, index: int) -> Slot | None:
        """The slot of a piece that is loaded, from now on the most recently used; None if it is not. Reads of what is
        not wanted stop soon then, as this one is waited for."""
        slot = self._loaded.get(index)
        if slot is not None:
            self._loaded.move_to_end(index)
            return slot
        for other, reading in self._reading.items():
            if other not in self.wanted and reading.pending is not None:
                reading.pending.cancel()
        return None

    def take_next(self) -> Slot | None:
        """The slot to fill next: the first piece's that is wanted and not there. Its slot was free, or had what is not
        wanted; None if there is none, or nothing to read."""
        for index in self.wanted:
            if index in self._pieces and not (
                index in self._loaded or index in self._reading or index in self.failures
            ):
                offset = self._try_take()
                if offset is None:
                    return None
                slot = self._reading[index] = self._arena.slot(self._pieces[index], offset, is_pinned=False)
                return slot
        return None

    def _try_take(self) -> int | None:
        if self._free:
            return self._free.pop()
        victim = next((index for index in self._loaded if index not in self.wanted), None)
        return None if victim is None else self._loaded.pop(victim).offset

    def on_read(self, slot: Slot, error: Exception | None) -> None:
        """Reading into ``slot`` is over."""
        index = slot.piece.index
        del self._reading[index]
        if error is None:
            self._loaded[index] = slot
            return
        self._free.append(slot.offset)
        if index in self.wanted and not isinstance(error, Cancelled):
            self.failures[index] = error

    def slots(self) -> Iterator[Slot]:
        """All that have a piece or will have."""
        yield from self._loaded.values()
        yield from self._reading.values()

    def cancel_reads(self) -> None:
        """Stops all reads soon."""
        for slot in self._reading.values():
            if slot.pending is not None:
                slot.pending.cancel()
