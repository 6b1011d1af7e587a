"""Cuts slices out of a model's files. Keeps them open, holds a few MB at most; knows no pieces and no shards.

One thread at a time uses a source.
"""

from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf, GgufTensor, ReadBytes
from tpi.model.spans import Span, Spans
from tpi.weights.files import read_exactly
from tpi.weights.modelfiles import ModelFiles
from tpi.weights.patches import Patch, gather
from tpi.weights.strips import StripReader, WholeRows

BUFFER_BYTES = 4_000_000


class SliceSource(Protocol):
    """Where bytes of slices come from: the model's file, an older shard, or a link to who has them."""

    def read(self, patch: Patch, out: memoryview) -> None:
        """Fills ``out`` (writable bytes, ``patch.n_bytes`` of them) with a patch of the model, row after row, blocking.

        ``out`` stays the caller's; nothing refers to it after the call.

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

    def read(self, runs: Spans, n_rows: int, out: memoryview) -> None:
        """Fills ``out`` with these ranges of bytes of each of the first ``n_rows``.

        Strips of rows go through a buffer of 4 MB with whole rows: a read per row would be far slower.
        """
        if runs == (Span(0, self.row_bytes),):
            read_exactly(self.descriptor, self.path, self.offset, out)
        elif self.row_bytes > BUFFER_BYTES:
            at = 0
            for row in range(n_rows):
                for run in runs:
                    place = self.offset + row * self.row_bytes + run.start
                    read_exactly(self.descriptor, self.path, place, out[at : at + run.size])
                    at += run.size
        elif n_rows:
            self._read_strips(runs, np.frombuffer(out, np.uint8).reshape(n_rows, -1))

    def _read_strips(self, runs: Spans, out: npt.NDArray[np.uint8]) -> None:
        n_rows = len(out)
        step = BUFFER_BYTES // self.row_bytes
        buffer = np.empty((min(step, n_rows), self.row_bytes), np.uint8)
        for row in range(0, n_rows, step):
            whole = buffer[: min(step, n_rows - row)]
            read_exactly(self.descriptor, self.path, self.offset + row * self.row_bytes, whole.data.cast("B"))
            gather(whole, runs, out[row : row + len(whole)])


@runtime_checkable
class ColumnRecipe(Protocol):
    """A ``gguf.reader.Recipe`` that need not make whole rows."""

    def make_columns(self, read: ReadBytes, rows: Span, columns: Spans) -> npt.NDArray[np.uint8]:
        """Of rows the bytes of ``columns``, cut between blocks, one range after the other: uint8 [rows, bytes], the
        caller's.

        Raises:
            ModelFileError: a file cannot be read.
        """
        ...


class GgufSource:
    """The slices of a model; opens its files and closes them in the end. ``strips``: several ranks cut columns of it at
    the same time."""

    def __init__(self, gguf: Gguf, strips: StripReader | None = None) -> None:
        self._gguf, self._strips, self._files = gguf, strips, ModelFiles(gguf)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; may be called again."""
        self._files.close()

    def read(self, patch: Patch, out: memoryview) -> None:
        """See :class:`SliceSource`. A column cut reads whole rows through a buffer of 4 MB, or shares strips of them
        with others.

        Raises:
            ModelFileError: the model has no such rows or columns, or the file cannot be read.
        """
        tensor, strips = self._tensor(patch), self._strips
        row_bytes, runs = tensor.type.row_bytes(tensor.n_columns), patch.runs_in((Span(0, tensor.n_columns),))
        if strips is not None and patch.row_bytes < row_bytes and patch.rows.size:
            source = WholeRows(
                patch.tensor, tensor.n_rows, row_bytes, lambda row, rows: self._files.read_rows(tensor, row, rows)
            )
            strips.read(source, patch.rows, runs, np.frombuffer(out, np.uint8).reshape(patch.rows.size, -1))
            return
        if strips is not None:
            strips.pass_by(patch.tensor)
        if tensor.recipe is None:
            place = tensor.offset + patch.rows.start * row_bytes
            table = RowTable(self._files.descriptor(tensor.file), self._gguf.paths[tensor.file], place, row_bytes)
            table.read(runs, patch.rows.size, out)
        else:
            self._make(tensor, patch, runs, np.frombuffer(out, np.uint8).reshape(patch.rows.size, -1))

    def _make(self, tensor: GgufTensor, patch: Patch, runs: Spans, out: npt.NDArray[np.uint8]) -> None:
        """Fills ``out`` with a patch of rows that are made, ``runs`` of their bytes, a buffer full at a time."""
        row_bytes, first = tensor.type.row_bytes(tensor.n_columns), patch.rows.start
        step = max(1, BUFFER_BYTES // row_bytes)
        for row in range(first, patch.rows.stop, step):
            rows = Span(row, min(row + step, patch.rows.stop))
            if isinstance(tensor.recipe, ColumnRecipe):
                out[row - first : rows.stop - first] = tensor.recipe.make_columns(self._files.read, rows, patch.columns)
                continue
            whole = np.empty((rows.size, row_bytes), np.uint8)
            self._files.read_rows(tensor, row, whole.data.cast("B"))
            gather(whole, runs, out[row - first : rows.stop - first])

    def _tensor(self, patch: Patch) -> GgufTensor:
        tensor = self._gguf.tensors.get(patch.tensor)
        if tensor is None or tensor.type.id != patch.type_id or not patch.lies_in(tensor.n_rows, tensor.n_columns):
            raise ModelFileError(
                f"{self._gguf.paths[0]} does not have the rows and columns of {patch.tensor} that are asked for"
            )
        return tensor
