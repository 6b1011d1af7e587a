"""Tensors as compositions: rows that lie in files, and what is made of them, a few rows at a time. Data; any thread.

Each takes the rows that it needs of those below it, so that a slice of any size is made in a few times its own memory.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from tpi.gguf.reader import ReadBytes
from tpi.hub.safetensors import StoredTensor

Array = npt.NDArray[Any]

_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "u1", "F8_E5M2": "u1", "F8_E8M0": "u1", "U8": "u1"}
_FAR_ROWS = 8
"""Rows that lie further apart are read one by one, nearer ones with what lies between."""


class Values(Protocol):
    """``n_rows`` by ``n_columns`` values, in numpy arrays of ``kind``: a type's name in safetensors files, where BF16
    is in uint16, and F8 in uint8."""

    @property
    def kind(self) -> str: ...

    @property
    def n_rows(self) -> int: ...

    @property
    def n_columns(self) -> int: ...

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        """Rows ``start`` to ``stop``, [rows, columns], the caller's.

        Raises:
            ModelFileError: a file cannot be read.
        """
        ...


@dataclass(frozen=True)
class Stored:
    """Rows as they lie in a file."""

    kind: str
    n_rows: int
    n_columns: int
    file: int
    offset: int

    @classmethod
    def of(cls, tensor: StoredTensor, n_columns: int | None = None) -> "Stored":
        """All of a tensor, in rows of its last axis, or of ``n_columns``."""
        n_values, n_columns = tensor.n_rows * tensor.n_columns, n_columns or tensor.n_columns
        return cls(tensor.dtype, n_values // max(1, n_columns), n_columns, tensor.file, tensor.offset)

    @classmethod
    def can_be(cls, tensor: StoredTensor) -> bool:
        """Whether it is of a type whose values can be used."""
        return tensor.dtype in _DTYPES

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        found = np.empty((stop - start, self.n_columns), _DTYPES[self.kind])
        if found.size:
            read(self.file, self.offset + start * self.n_columns * found.itemsize, found.data.cast("B"))
        return found

    def block(self, read: ReadBytes, rows: slice, columns: slice) -> Array:
        """Columns of rows, [rows, columns], each row read apart: for few of many columns."""
        found = np.empty((rows.stop - rows.start, columns.stop - columns.start), _DTYPES[self.kind])
        for index, row in enumerate(range(rows.start, rows.stop)):
            place = self.offset + (row * self.n_columns + columns.start) * found.itemsize
            read(self.file, place, found[index].data.cast("B"))
        return found


@dataclass(frozen=True)
class Axes:
    """Numbers in another order, or some of them: from ``first``, along axes of ``(size, stride)``, the last one's
    numbers next to one another."""

    axes: tuple[tuple[int, int], ...]
    first: int = 0

    @property
    def size(self) -> int:
        product = 1
        for size, _ in self.axes:
            product *= size
        return product

    def numbers(self, start: int, stop: int) -> Array:
        """Those at ``start`` to ``stop`` of the new order."""
        left, found = np.arange(start, stop), np.full(stop - start, self.first)
        for size, stride in reversed(self.axes):
            left, here = np.divmod(left, size)
            found += here * stride
        return found


@dataclass(frozen=True)
class Derived:
    """What is made of ``source``: of its kind and size, where a class does not say otherwise."""

    source: Values

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def n_rows(self) -> int:
        return self.source.n_rows

    @property
    def n_columns(self) -> int:
        return self.source.n_columns


@dataclass(frozen=True)
class Rows(Derived):
    """Rows of ``source`` in the order of ``axes``."""

    axes: Axes

    @property
    def n_rows(self) -> int:
        return self.axes.size

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        numbers = self.axes.numbers(start, stop)
        order = np.argsort(numbers)
        ranked = numbers[order]
        ends = np.flatnonzero(np.diff(ranked) > _FAR_ROWS) + 1
        found = np.empty((stop - start, self.n_columns), _DTYPES[self.kind])
        for run in np.split(order, ends) if len(order) else ():
            first, last = int(numbers[run[0]]), int(numbers[run[-1]])
            found[run] = self.source.rows(read, first, last + 1)[numbers[run] - first]
        return found


@dataclass(frozen=True)
class Columns(Derived):
    """Columns of ``source`` in the order of ``axes``."""

    axes: Axes

    @property
    def n_columns(self) -> int:
        return self.axes.size

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        return self.source.rows(read, start, stop)[:, self.axes.numbers(0, self.n_columns)]


@dataclass(frozen=True)
class Stacked:
    """The rows of one after those of the other; all of one kind and as many columns."""

    sources: tuple[Values, ...]

    @property
    def kind(self) -> str:
        return self.sources[0].kind

    @property
    def n_rows(self) -> int:
        return sum(source.n_rows for source in self.sources)

    @property
    def n_columns(self) -> int:
        return self.sources[0].n_columns

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        found, before = list[Array](), 0
        for source in self.sources:
            first, last = max(start - before, 0), min(stop - before, source.n_rows)
            if first < last:
                found.append(source.rows(read, first, last))
            before += source.n_rows
        return np.concatenate(found) if found else self.sources[0].rows(read, 0, 0)


@dataclass(frozen=True)
class Transposed:
    """Matrices of ``n_inner`` rows each, one after the other, each transposed."""

    source: Stored
    n_inner: int

    @property
    def kind(self) -> str:
        return self.source.kind

    @property
    def n_rows(self) -> int:
        return self.source.n_rows // self.n_inner * self.source.n_columns

    @property
    def n_columns(self) -> int:
        return self.n_inner

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        width, found = self.source.n_columns, list[Array]()
        while start < stop:
            matrix, first = divmod(start, width)
            last = min(width, first + stop - start)
            inner = slice(matrix * self.n_inner, (matrix + 1) * self.n_inner)
            found.append(self.source.block(read, inner, slice(first, last)).T)
            start += last - first
        return np.concatenate([np.empty((0, self.n_inner), _DTYPES[self.kind]), *found])


@dataclass(frozen=True)
class Scaled(Derived):
    """Values times scales, f32: matrices of ``n_inner`` rows one after the other, in each a scale for every block of
    ``block`` rows and columns, blocks at the end perhaps smaller. ``scales`` has a row for each row of blocks."""

    scales: Values
    n_inner: int
    block: tuple[int, int]

    @property
    def kind(self) -> str:
        return "F32"

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        if start == stop:
            return np.empty((0, self.n_columns), np.float32)
        height, width = self.block
        matrix, row = np.divmod(np.arange(start, stop), self.n_inner)
        places = matrix * -(-self.n_inner // height) + row // height
        first = int(places[0])
        scales = to_f32(self.scales.kind, self.scales.rows(read, first, int(places[-1]) + 1))
        found = to_f32(self.source.kind, self.source.rows(read, start, stop))
        for column in range(scales.shape[1]):
            found[:, column * width : (column + 1) * width] *= scales[places - first, column, None]
        return found


@dataclass(frozen=True)
class Changed(Derived):
    """f32, of what ``source`` has, after ``change``: ``plus 1``, or ``minus exp``, the nearest to it."""

    change: str

    @property
    def kind(self) -> str:
        return "F32"

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        found = to_f32(self.source.kind, self.source.rows(read, start, stop))
        return found + np.float32(1) if self.change == "plus 1" else -np.exp(found, dtype=np.float64).astype(np.float32)


@dataclass(frozen=True)
class Given:
    """A row of numbers that stand in no file of tensors."""

    numbers: tuple[float, ...]

    kind = "F32"
    n_rows = 1

    @property
    def n_columns(self) -> int:
        return len(self.numbers)

    def rows(self, read: ReadBytes, start: int, stop: int) -> Array:
        return np.array([self.numbers] * (stop - start), np.float32).reshape(stop - start, -1)


def to_f32(kind: str, values: Array) -> npt.NDArray[np.float32]:
    """Values as they lie in arrays of ``kind``, f32, a copy or not."""
    if kind == "BF16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if kind == "F8_E4M3":
        found: npt.NDArray[np.float32] = _E4M3.take(values)
        return found
    if kind == "F8_E5M2":
        return (values.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if kind == "F8_E8M0":
        return np.ldexp(np.float32(1), values.astype(np.int32) - 127)
    return values.astype(np.float32, copy=False)


def _e4m3() -> npt.NDArray[np.float32]:
    """All 256: 4 bits of exponent from 2^-7, 3 of mantissa, no infinity (Micikevicius et al. 2022, section 3)."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    size = np.where(exponent > 0, np.ldexp(8.0 + mantissa, exponent - 10), np.ldexp(1.0 * mantissa, -9))
    size[(bits & 127) == 127] = np.nan
    found: npt.NDArray[np.float32] = np.where(bits < 128, size, -size).astype(np.float32)
    return found


_E4M3 = _e4m3()
