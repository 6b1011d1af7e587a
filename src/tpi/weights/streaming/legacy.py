"""What a window leaves to the one that takes its place, so that it is not read again. Owns nothing.

The thread of passes runs it, between the old window's last pass and the new one's first; nothing is read into the old
memory any more.
"""

import mmap
from collections.abc import Callable, Mapping

from tpi.weights.streaming.arena import Arena, Slot
from tpi.weights.streaming.places import Places


class Legacy:
    """Pieces in the memory of a window that another takes over, by the successor's indexes: of the pins in ``places``
    those that ``pieces`` names; the others are given up at once."""

    def __init__(self, places: Places, arena: Arena, pieces: Mapping[int, int], close: Callable[[], None]) -> None:
        self._pins, self._arena, self._pieces = dict(places.pins()), arena, dict(pieces)
        self._close = close
        for index in self._pins.keys() - set(pieces.values()):
            self._forget(index)

    def find(self, index: int, like: Slot) -> memoryview | None:
        """The bytes of the successor's piece, if they are there and lie as in its slot; to be released."""
        slot = self._pins.get(self._pieces[index]) if index in self._pieces else None
        if slot is None or not slot.is_loaded:
            return None
        theirs, ours = slot.piece, like.piece
        is_same = (theirs.arena_bytes, theirs.part_offsets) == (ours.arena_bytes, ours.part_offsets)
        return self._arena.memory_of(slot) if is_same else None

    def give_up(self, index: int) -> None:
        """The piece is not needed here any more."""
        if index in self._pieces:
            self._forget(self._pieces[index])

    def close(self) -> None:
        """Closes the old window."""
        self._close()

    def _forget(self, index: int) -> None:
        slot = self._pins.get(index)
        if slot is not None and (slot.offset | slot.piece.arena_bytes) % mmap.PAGESIZE == 0:
            self._arena.forget(slot.offset, slot.piece.arena_bytes)


def inherit(legacy: Legacy, places: Places, arena: Arena) -> None:
    """Copies what a predecessor has of the pins in ``places``; never more than one piece is in memory twice."""
    for index, slot in places.pins():
        content = legacy.find(index, slot)
        if content is not None:
            arena.memory_of(slot)[:] = content
            content.release()
            places.is_read(slot)
        legacy.give_up(index)
