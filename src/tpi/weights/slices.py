"""Cuts slices out of GGUF files. Keeps the files open, holds a few MB at most; knows no pieces and no shards.

One thread at a time uses a source.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf, GgufTensor
from tpi.model.blocks import Span
from tpi.weights.files import open_for_reading, read_exactly
from tpi.weights.layout import Part

BUFFER_BYTES = 4_000_000


class SliceSource(Protocol):
    """Where bytes of slices come from: the model's file, an older shard, or a link to who has them."""

    def read(self, part: Part, rows: Span, out: memoryview) -> None:
        """Fills ``out`` (writable bytes) with rows of a slice, row after row, blocking.

        ``part`` names tensor, ``first_row`` and ``columns``, which are those to read; ``rows`` counts within the slice
        like ``part.rows`` and may lie outside of it. ``out`` has exactly ``rows.size * part.row_bytes`` bytes and stays
        the caller's; nothing refers to it after the call.

        Raises:
            ModelFileError, LinkError, ChecksumError: the bytes cannot be had.
        """


@dataclass(frozen=True)
class RowTable:
    """Rows of ``row_bytes`` each that lie one after the other from ``offset`` of an open file."""

    descriptor: int
    path: Path
    offset: int
    row_bytes: int

    def read(self, first_byte: int, n_rows: int, out: memoryview) -> None:
        """Fills ``out`` with the bytes from ``first_byte`` of each of the first ``n_rows``, ``len(out) / n_rows`` each.

        Strips of rows go through a buffer of 4 MB with whole rows: a read per row would be far slower.
        """
        strip_bytes = len(out) // n_rows if n_rows else 0
        if strip_bytes == self.row_bytes:
            read_exactly(self.descriptor, self.path, self.offset, out)
        elif self.row_bytes > BUFFER_BYTES:
            for row in range(n_rows):
                place = self.offset + row * self.row_bytes + first_byte
                read_exactly(self.descriptor, self.path, place, out[row * strip_bytes : (row + 1) * strip_bytes])
        elif n_rows:
            self._read_strips(first_byte, np.frombuffer(out, np.uint8).reshape(n_rows, strip_bytes))

    def _read_strips(self, first_byte: int, out: npt.NDArray[np.uint8]) -> None:
        n_rows, strip_bytes = out.shape
        step = BUFFER_BYTES // self.row_bytes
        buffer = np.empty((min(step, n_rows), self.row_bytes), np.uint8)
        for row in range(0, n_rows, step):
            whole = buffer[: min(step, n_rows - row)]
            read_exactly(self.descriptor, self.path, self.offset + row * self.row_bytes, whole.data.cast("B"))
            out[row : row + len(whole)] = whole[:, first_byte : first_byte + strip_bytes]


class GgufSource:
    """The slices of a GGUF model; opens its files and closes them in the end."""

    def __init__(self, gguf: Gguf) -> None:
        self._gguf = gguf
        self._descriptors: list[int] = []
        try:
            for path in gguf.paths:
                self._descriptors.append(open_for_reading(path))
        except ModelFileError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; may be called again."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    def read(self, part: Part, rows: Span, out: memoryview) -> None:
        """See :class:`SliceSource`. A column cut reads whole rows through a buffer of 4 MB.

        Raises:
            ModelFileError: the model has no such rows or columns, or the file cannot be read.
        """
        tensor = self._tensor(part, rows)
        start, row_bytes = part.first_row + rows.start, tensor.type.row_bytes(tensor.n_columns)
        path, place = self._gguf.paths[tensor.file], tensor.offset + start * row_bytes
        table = RowTable(self._descriptors[tensor.file], path, place, row_bytes)
        table.read(tensor.type.row_bytes(part.columns.start), rows.size, out)

    def _tensor(self, part: Part, rows: Span) -> GgufTensor:
        tensor = self._gguf.tensors.get(part.tensor)
        if (
            tensor is None
            or tensor.type.id != part.type_id
            or not 0 <= part.first_row + rows.start <= part.first_row + rows.stop <= tensor.n_rows
            or not 0 <= part.columns.start < part.columns.stop <= tensor.n_columns
            or part.columns.start % tensor.type.block_elements
            or part.columns.stop % tensor.type.block_elements
        ):
            raise ModelFileError(
                f"{self._gguf.paths[0]} does not have the rows and columns of {part.tensor} that are asked for"
            )
        return tensor
