"""What a window tells of itself."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tpi.weights.streaming.arena import Slot
from tpi.weights.streaming.disk import ReadWay


@dataclass(frozen=True)
class WindowStats:
    """Sizes, and sums since the window was made. ``wait_s`` is time that ``hold`` spent waiting for the disk,
    ``reading_s`` time in which anything was being read. ``demanded`` counts holds of pieces on demand, ``hits`` those
    of them that found the piece in memory; ``streamed_bytes`` is what was read and not pinned."""

    n_pieces: int
    pinned_pieces: int
    pinned_bytes: int
    ring_bytes: int
    pool_bytes: int
    read_bytes: int
    streamed_bytes: int
    demanded: int
    hits: int
    wait_s: float
    reading_s: float
    way: ReadWay
    is_direct: bool

    @property
    def total_bytes(self) -> int:
        """Of pins, ring and slots."""
        return self.pinned_bytes + self.ring_bytes + self.pool_bytes

    @property
    def disk_mode(self) -> str:
        """In words, with the rate that was measured: at the trial of the disk, or since."""
        rate = self.way.bytes_per_s or (self.read_bytes / self.reading_s if self.reading_s else 0.0)
        chunk = f"{self.way.chunk_bytes / (1 << 20):.3g} MiB"
        return f"{'direct' if self.is_direct else 'buffered'} {chunk} x {self.way.n_readers}, {rate / 1e6:,.0f} MB/s"


@dataclass(frozen=True)
class WindowUse:
    """What the bytes of a window are at one moment; together they are all of its memory.

    ``pinned`` and ``loaded`` are in memory for good, and until they are used or, on demand, make room; ``held`` is used
    now; ``free`` are also pins that nothing was read into yet, dropped pieces, and what ring and slots cannot give out.
    """

    pinned_bytes: int
    loaded_bytes: int
    loading_bytes: int
    held_bytes: int
    free_bytes: int


def use_of(slots: Iterable[Slot], n_bytes: int, holding: Sequence[Slot]) -> WindowUse:
    """What ``n_bytes`` with these slots are used for while those of ``holding`` are held."""
    pinned = loaded = loading = 0
    for slot in slots:
        if slot.pending is not None:
            loading += slot.piece.arena_bytes
        elif slot.is_loaded and not slot.is_dropped and slot not in holding:
            pinned += slot.piece.arena_bytes if slot.is_pinned else 0
            loaded += 0 if slot.is_pinned else slot.piece.arena_bytes
    held = sum(slot.piece.arena_bytes for slot in holding)
    return WindowUse(pinned, loaded, loading, held, n_bytes - pinned - loaded - loading - held)
