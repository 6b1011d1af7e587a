"""The KV cache of one rank: keys and values of its KV heads, in cells, per block. Zero until written.

Owns the memory (private anonymous mappings: cells that were never written cost nothing, even when kernels read them
behind the mask). One thread.
"""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tpi.errors import MemoryBudgetError
from tpi.gguf.types import F16, TensorType
from tpi.model.spans import Span
from tpi.weights.files import round_up


@dataclass(frozen=True)
class CacheExtent:
    """What a block keeps: values of a cell in keys and in values, and the number of cells. They are those of the pool,
    or where it ``is_ring`` rings of the sequences' last positions, whose cells have other numbers."""

    key_width: int
    value_width: int
    n_cells: int
    is_ring: bool = False

    @property
    def widths(self) -> tuple[int, ...]:
        """Of keys and, if they are kept for themselves, of values."""
        return tuple(width for width in (self.key_width, self.value_width) if width)


class KvCache:
    """A context manager; ``close`` is idempotent."""

    def __init__(self, extents: Mapping[int, CacheExtent], kind: TensorType = F16) -> None:
        """``extents`` by block; those without a width are left out.

        Raises:
            MemoryBudgetError: the system does not give so much memory.
        """
        self._extents = {block: extent for block, extent in extents.items() if extent.widths}
        self._kind = kind
        self._maps: dict[int, list[mmap.mmap]] = {}
        self._addresses: dict[int, tuple[int, int]] = {}
        for block, extent in self._extents.items():
            maps = self._maps[block] = [reserve(extent.n_cells * kind.row_bytes(width)) for width in extent.widths]
            addresses = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in maps]
            self._addresses[block] = addresses[0], addresses[-1]

    def __enter__(self) -> "KvCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._addresses.clear()
        self._maps.clear()

    @property
    def n_bytes(self) -> int:
        """What the cache takes once every cell was written."""
        return bytes_for(self._extents, self._kind)

    def written_bytes(self, stop_cell: int) -> int:
        """What the cache takes once the pool's cells before ``stop_cell`` were written, and all rings, in whole
        pages."""
        return sum(
            round_up(
                (extent.n_cells if extent.is_ring else min(stop_cell, extent.n_cells)) * self._kind.row_bytes(width),
                mmap.PAGESIZE,
            )
            for extent in self._extents.values()
            for width in extent.widths
        )

    def __contains__(self, block: int) -> bool:
        """Whether this rank keeps anything of the block."""
        return block in self._addresses

    def addresses(self, block: int) -> tuple[int, int]:
        """Where keys and values of ``block`` lie, each [n_cells, width] in the cache's type; the same place where
        values are part of the keys."""
        return self._addresses[block]

    def forget(self, first_cell: int = 0) -> None:
        """Clears the whole pages behind the pool's ``first_cell``, and gives their memory back where the system can
        take it; from cell 0 on the rings as well."""
        for memory, row_bytes, is_ring in self._all():
            if is_ring and first_cell:
                continue
            start = round_up(first_cell * row_bytes, mmap.PAGESIZE)
            if start >= len(memory):
                continue
            if hasattr(mmap, "MADV_DONTNEED") and sys.platform == "linux":
                memory.madvise(mmap.MADV_DONTNEED, start)  # private and anonymous: zero again when it is read
            else:
                memory[start:] = bytes(len(memory) - start)

    def zero(self, block: int, cells: Span) -> None:
        """Clears those of the cells that the block has, after a pass that was stopped: a NaN there would spread through
        masked attention."""
        extent = self._extents[block]
        first, stop = (min(cell, extent.n_cells) for cell in (cells.start, cells.stop))
        for memory, width in zip(self._maps[block], extent.widths, strict=True):
            row_bytes = self._kind.row_bytes(width)
            memory[first * row_bytes : stop * row_bytes] = bytes((stop - first) * row_bytes)

    def copy(self, block: int, source: int, target: int, n_cells: int) -> None:
        """Copies what the block keeps in cells from ``source`` on to those from ``target`` on."""
        for memory, width in zip(self._maps[block], self._extents[block].widths, strict=True):
            row_bytes = self._kind.row_bytes(width)
            start = target * row_bytes
            memory[start : start + n_cells * row_bytes] = memory[source * row_bytes : (source + n_cells) * row_bytes]

    def views(self, block: int, first: int, n_cells: int) -> list[memoryview]:
        """The memory itself of ``n_cells`` cells from ``first`` on: of keys and, if they are kept for themselves, of
        values. Valid until ``close``."""
        found = []
        for memory, width in zip(self._maps[block], self._extents[block].widths, strict=True):
            row_bytes = self._kind.row_bytes(width)
            found.append(memoryview(memory)[first * row_bytes : (first + n_cells) * row_bytes])
        return found

    def _all(self) -> Sequence[tuple[mmap.mmap, int, bool]]:
        """Every mapping, the bytes of a cell in it, and whether it has rings."""
        return [
            (memory, self._kind.row_bytes(width), self._extents[block].is_ring)
            for block, maps in self._maps.items()
            for memory, width in zip(maps, self._extents[block].widths, strict=True)
        ]


def bytes_for(extents: Mapping[int, CacheExtent], kind: TensorType = F16) -> int:
    """What a cache takes once every cell was written."""
    return sum(extent.n_cells * kind.row_bytes(width) for extent in extents.values() for width in extent.widths)


def reserve(n_bytes: int) -> mmap.mmap:
    """Zero bytes that become resident as they are written. Shared mappings would grow when read, too.

    Raises:
        MemoryBudgetError: the system does not give so much memory.
    """
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(-1, n_bytes)
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryBudgetError(
            f"no room for {n_bytes:,} bytes of KV cache ({error.strerror}): use a shorter context"
        ) from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
