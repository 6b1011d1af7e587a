"""How kernels have rearranged bytes, found out by trying, so that a rearranged shard still serves other shares.

Of what kernels do only this is assumed: in every few rows of a matrix the quantisation blocks that lie one below the
other, a cell, become as many bytes next to one another, and each of a cell's bits is one of the original's, or its
opposite. Which one, matrices tell that say of every bit where it was; whether it is true for a matrix of some size,
random bytes that come back as they were. What does not come back is of no use to others. Any thread.
"""

from collections.abc import Iterable, Iterator
from random import Random
from typing import Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from tpi.gguf.types import TYPES_BY_ID
from tpi.weights.layout import Part

_Bytes: TypeAlias = npt.NDArray[np.uint8]

AS_IT_WAS, UNKNOWN = 0, 255
"""Marks of parts: not rearranged, and nobody knows how."""
MAX_CELL_ROWS = 32
_SEED = 20
_STRIP_BYTES = 250_000


class Rearranging(Protocol):
    """Kernels that rearrange matrices; see ``repacking.RepackingKernels``."""

    def rearrange(self, type_id: int, n_columns: int, n_rows: int, source: memoryview, out: memoryview) -> None: ...


class Order(msgspec.Struct, frozen=True, array_like=True):
    """The order of bits in cells of ``n_rows`` blocks of a type. The cell with all bits of ``flips`` changed has at
    ``places`` (uint16, little-endian) bit after bit what the blocks had, one after the other; bits of a byte count from
    the least significant one."""

    type_id: int
    n_rows: int
    places: bytes
    flips: bytes

    @property
    def cell_bytes(self) -> int:
        return self.n_rows * TYPES_BY_ID[self.type_id].block_bytes

    @property
    def is_possible(self) -> bool:
        """Whether it can be used; what comes from a file may not be."""
        if self.type_id not in TYPES_BY_ID or not 0 < self.n_rows <= MAX_CELL_ROWS:
            return False
        n_bits = 8 * self.cell_bytes
        if len(self.places) != 2 * n_bits or len(self.flips) != self.cell_bytes:
            return False
        return bool((np.bincount(np.frombuffer(self.places, "<u2"), minlength=n_bits) == 1).all())


class Restorer:
    """Brings rows back that have the order."""

    def __init__(self, order: Order) -> None:
        self.order = order
        places = np.frombuffer(order.places, "<u2").reshape(-1, 8)
        self._flips = np.frombuffer(order.flips, np.uint8)
        self._bytes = (places[:, 0] // 8).astype(np.intp)
        """Of every byte of the blocks where it is now, if its bits have stayed together."""
        is_torn = (places != self._bytes[:, None] * 8 + np.arange(8)).any(axis=1)
        self._torn = np.flatnonzero(is_torn)
        self._torn_bytes, self._torn_bits = places[is_torn] // 8, (places[is_torn] % 8).astype(np.uint8)

    def restore(self, rows: _Bytes) -> _Bytes:
        """The original of ``rows``, uint8 [a multiple of ``order.n_rows``, bytes]; new memory."""
        n_rows, row_bytes = rows.shape
        order = self.order
        cells = rows.reshape(-1, order.cell_bytes)
        if self._flips.any():
            cells = cells ^ self._flips
        blocks = np.take(cells, self._bytes, axis=1)
        if len(self._torn):
            torn = np.zeros((len(cells), len(self._torn)), np.uint8)
            for bit in range(8):
                found = np.take(cells, self._torn_bytes[:, bit], axis=1) >> self._torn_bits[:, bit]
                torn |= (found & 1) << bit
            blocks[:, self._torn] = torn
        n_blocks = row_bytes // TYPES_BY_ID[order.type_id].block_bytes
        by_row = blocks.reshape(n_rows // order.n_rows, n_blocks, order.n_rows, -1).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(by_row).reshape(n_rows, row_bytes)


class Orders:
    """The orders in which kernels have put matrices; ``found`` has each once. Holds two parts while it tries."""

    def __init__(self, kernels: Rearranging) -> None:
        self._kernels = kernels
        self.found: list[Order] = []
        self._marks: dict[tuple[int, int, int], int] = {}

    def mark_of(self, part: Part) -> int:
        """1 for the first of ``found``, and so on, or ``UNKNOWN``; of a part that the kernels rearrange."""
        matrix = part.type_id, part.n_columns, part.n_rows
        if matrix not in self._marks:
            self._marks[matrix] = self._find(*matrix)
        return self._marks[matrix]

    def _find(self, *matrix: int) -> int:
        for number, order in enumerate(self.found, 1):
            if order.type_id == matrix[0] and self._is_true(order, *matrix):
                return number
        for order in self._guess(*matrix):
            if len(self.found) < UNKNOWN - 1 and self._is_true(order, *matrix):
                self.found.append(order)
                return len(self.found)
        return UNKNOWN

    def _guess(self, type_id: int, n_columns: int, n_rows: int) -> Iterator[Order]:
        kind = TYPES_BY_ID[type_id]
        rows, out = np.zeros((2, n_rows, kind.row_bytes(n_columns)), np.uint8)
        n_cell_rows = 1
        while n_rows % n_cell_rows == 0 and n_cell_rows <= MAX_CELL_ROWS:
            n_bits = 8 * n_cell_rows * kind.block_bytes
            number, cells = np.arange(n_bits), list[_Bytes]()
            for bit in range(n_bits.bit_length() + 1):  # in the end all are 0
                told = np.packbits((number >> bit & 1).astype(np.uint8), bitorder="little")
                rows[:n_cell_rows, : kind.block_bytes] = told.reshape(n_cell_rows, -1)
                self._rearrange(type_id, n_columns, rows, out)
                cells.append(out.reshape(-1)[: n_bits // 8].copy())
            flips, was = cells.pop(), np.zeros(n_bits, np.int64)
            for bit, cell in enumerate(cells):
                was |= np.unpackbits(cell ^ flips, bitorder="little").astype(np.int64) << bit
            if np.array_equal(np.sort(was), number):
                yield Order(type_id, n_cell_rows, np.argsort(was).astype("<u2").tobytes(), flips.tobytes())
            n_cell_rows *= 2

    def _is_true(self, order: Order, type_id: int, n_columns: int, n_rows: int) -> bool:
        if n_rows % order.n_rows:
            return False
        rows, out = np.empty((2, n_rows, TYPES_BY_ID[type_id].row_bytes(n_columns)), np.uint8)
        random = Random(_SEED)  # numpy's would stay in memory
        step = max(1, _STRIP_BYTES // (rows.shape[1] * order.n_rows)) * order.n_rows
        strips = [slice(row, row + step) for row in range(0, n_rows, step)]
        for strip in strips:
            rows[strip].reshape(-1)[:] = np.frombuffer(random.randbytes(rows[strip].nbytes), np.uint8)
        self._rearrange(type_id, n_columns, rows, out)
        restorer = Restorer(order)
        return all(np.array_equal(restorer.restore(out[strip]), rows[strip]) for strip in strips)

    def _rearrange(self, type_id: int, n_columns: int, rows: _Bytes, out: _Bytes) -> None:
        self._kernels.rearrange(type_id, n_columns, len(rows), rows.reshape(-1).data, out.reshape(-1).data)


def are_possible(orders: Iterable[Order], marks: bytes, parts: Iterable[Part]) -> bool:
    """Whether orders and marks of parts can be, and fit the parts; for a header that somebody else may have written."""
    found = list(orders)
    return all(order.is_possible for order in found) and all(
        mark in (AS_IT_WAS, UNKNOWN) or (mark <= len(found) and _fits(found[mark - 1], part))
        for mark, part in zip(marks, parts, strict=True)
    )


def _fits(order: Order, part: Part) -> bool:
    return order.type_id == part.type_id and part.n_rows % order.n_rows == 0
