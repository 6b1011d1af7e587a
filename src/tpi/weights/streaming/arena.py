"""The memory of a window and the places of pieces in it. Owns one private anonymous mapping.

The kernel gives it memory when a piece first arrives, so an arena that is never used costs nothing. No lock of its own.
"""

import contextlib
import ctypes
import mmap
import sys
from dataclasses import dataclass

from tpi.errors import MemoryBudgetError
from tpi.weights.files import round_up
from tpi.weights.stored import StoredPiece
from tpi.weights.streaming.disk import PendingRead

_HUGE_FROM_BYTES = 64 << 20
"""From this size on the kernel may use huge pages, which compute faster; a smaller arena would grow by them."""

CAN_FORGET = sys.platform == "linux" and hasattr(mmap, "MADV_DONTNEED")
"""Whether memory can be given back before the arena is closed."""


@dataclass(frozen=True)
class HeldPiece:
    """A piece in memory, valid inside ``with`` only: where its bytes start, and where each of its parts does."""

    address: int
    part_addresses: tuple[int, ...]


class Slot:
    """A piece's place in the arena and how far its bytes are."""

    __slots__ = ("held", "is_dropped", "is_loaded", "is_pinned", "offset", "pending", "piece")

    def __init__(self, piece: StoredPiece, offset: int, held: HeldPiece, is_pinned: bool) -> None:
        self.piece = piece
        self.offset = offset
        self.held = held
        self.is_pinned = is_pinned
        self.pending: PendingRead | None = None
        self.is_loaded = False
        self.is_dropped = False


class Arena:
    """``n_bytes`` of memory, at least a page. ``close`` is idempotent; nothing may refer to the memory then.

    Raises:
        MemoryBudgetError: the system does not give so much memory.
    """

    def __init__(self, n_bytes: int) -> None:
        self._mapping = allocate(round_up(max(1, n_bytes), mmap.PAGESIZE), "of weights")
        self._memory = memoryview(self._mapping)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._mapping))

    def slot(self, piece: StoredPiece, offset: int, *, is_pinned: bool) -> Slot:
        """The place at ``offset`` for ``piece``, still empty."""
        address = self.address + offset
        held = HeldPiece(address, tuple(address + part for part in piece.part_offsets))
        return Slot(piece, offset, held, is_pinned)

    def memory_of(self, slot: Slot) -> memoryview:
        """What to read the piece into; to be released before the arena is closed."""
        return self._memory[slot.offset : slot.offset + slot.piece.arena_bytes]

    def forget(self, offset: int, n_bytes: int) -> None:
        """Gives the system's pages from ``offset``, where one must begin, back; they come anew if something is read
        into them."""
        n_bytes = round_up(n_bytes, mmap.PAGESIZE)
        if CAN_FORGET and n_bytes:
            with contextlib.suppress(OSError):  # a kernel without huge pages, which would swallow the hole again
                self._mapping.madvise(mmap.MADV_NOHUGEPAGE, offset, n_bytes)
            self._mapping.madvise(mmap.MADV_DONTNEED, offset, n_bytes)

    def forget_from(self, offset: int) -> None:
        """The same for all whole pages from ``offset`` on."""
        offset = round_up(offset, mmap.PAGESIZE)
        self.forget(offset, len(self._mapping) - offset)

    def close(self) -> None:
        self._memory.release()
        self._mapping.close()


def allocate(n_bytes: int, purpose: str) -> mmap.mmap:
    """Memory that becomes resident as it is written; the caller's.

    Raises:
        MemoryBudgetError: the system does not give so much memory.
    """
    try:
        if sys.platform == "win32":
            return mmap.mmap(-1, n_bytes)
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryBudgetError(
            f"no room for {n_bytes:,} bytes {purpose} ({error.strerror}): use less memory, or end other programs"
        ) from error
    if n_bytes >= _HUGE_FROM_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
