"""The KV cache of one rank: keys and values of its KV heads, in cells, per block. Zero until written.

Owns the memory (private anonymous mappings: cells that were never written cost nothing, even when kernels read them
behind the mask). One thread.
"""

import contextlib
import ctypes
import mmap
import sys
from collections.abc import Mapping

from tpi.errors import MemoryBudgetError
from tpi.gguf.types import F16, TensorType
from tpi.weights.files import round_up


class KvCache:
    """``widths[block]`` values per cell (KV heads times head dimension) for keys and again for values.

    A context manager; ``close`` is idempotent.
    """

    def __init__(self, widths: Mapping[int, int], n_cells: int, kind: TensorType = F16) -> None:
        """Raises:
        MemoryBudgetError: the system does not give so much memory.
        """
        self.n_cells = n_cells
        self._widths = {block: width for block, width in widths.items() if width}
        self._kind = kind
        self._maps: dict[int, tuple[mmap.mmap, mmap.mmap]] = {}
        self._addresses: dict[int, tuple[int, int]] = {}
        for block, width in self._widths.items():
            n_bytes = n_cells * kind.row_bytes(width)
            maps = self._maps[block] = _reserve(n_bytes), _reserve(n_bytes)
            addresses = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in maps]
            self._addresses[block] = addresses[0], addresses[1]

    def __enter__(self) -> "KvCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._addresses.clear()
        self._maps.clear()

    @staticmethod
    def bytes_for(widths: Mapping[int, int], n_cells: int, kind: TensorType = F16) -> int:
        """What the cache takes once every cell was written."""
        return sum(2 * n_cells * kind.row_bytes(width) for width in widths.values())

    def written_bytes(self, stop_cell: int) -> int:
        """What the cache takes once the cells before ``stop_cell`` were written, in whole pages."""
        rows = (self._kind.row_bytes(width) for width in self._widths.values())
        return sum(2 * round_up(stop_cell * row, mmap.PAGESIZE) for row in rows)

    def __contains__(self, block: int) -> bool:
        """Whether this rank keeps anything of the block."""
        return block in self._addresses

    def addresses(self, block: int) -> tuple[int, int]:
        """Where keys and values of ``block`` lie, each [n_cells, width] in the cache's type."""
        return self._addresses[block]

    def forget(self, first_cell: int = 0) -> None:
        """Clears the whole pages behind ``first_cell``, and gives their memory back where the system can take it."""
        for block, maps in self._maps.items():
            start = round_up(first_cell * self._kind.row_bytes(self._widths[block]), mmap.PAGESIZE)
            for memory in maps:
                if start >= len(memory):
                    continue
                if hasattr(mmap, "MADV_DONTNEED") and sys.platform == "linux":
                    memory.madvise(mmap.MADV_DONTNEED, start)  # private and anonymous: zero again when it is read
                else:
                    memory[start:] = bytes(len(memory) - start)

    def zero(self, first_cell: int, stop_cell: int) -> None:
        """Clears cells of an aborted pass: a NaN there would spread through masked attention."""
        for block, maps in self._maps.items():
            row = self._kind.row_bytes(self._widths[block])
            for memory in maps:
                memory[first_cell * row : stop_cell * row] = bytes((stop_cell - first_cell) * row)


def _reserve(n_bytes: int) -> mmap.mmap:
    """Zero bytes that become resident as they are written. Shared mappings would grow when read, too."""
    try:
        if not hasattr(mmap, "MAP_PRIVATE"):
            return mmap.mmap(-1, n_bytes)
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryBudgetError(
            f"no room for {n_bytes:,} bytes of KV cache ({error.strerror}): use a smaller --context"
        ) from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory
