"""An older shard as a source of slices: what a changed share still needs of it does not travel again.

Owns one descriptor. A piece is compared with its sums before anything of it is used: damage must not get new sums.
One thread at a time.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from tpi.errors import ModelFileError
from tpi.model.spans import Span, Spans
from tpi.weights.files import open_for_reading, round_up
from tpi.weights.patches import Patch, gather, intersect, placed_patches
from tpi.weights.shards.orders import AS_IT_WAS, UNKNOWN, Restorer
from tpi.weights.shards.shard import Shard
from tpi.weights.slices import BUFFER_BYTES, RowTable


@dataclass(frozen=True, slots=True)
class _Held:
    """A patch in the shard: in which piece, in a part that starts at ``offset`` of the file, from which of its rows.
    ``mark``: see ``ShardHeader``."""

    patch: Patch
    piece: int
    offset: int
    row: int
    mark: int


class ShardSource:
    """Reads slices of what a shard holds; what its disk has damaged counts as not held, and what kernels have
    rearranged if it is not known how."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._held: dict[str, list[_Held]] = {}
        self._is_sound: dict[int, bool] = {}
        self._restorers = [Restorer(order) for order in shard.header.orders]
        number = 0
        for piece in shard.pieces:
            for part in piece.parts:
                mark, number = shard.header.mark(number), number + 1
                offset = shard.file_offset(piece.index) + part.offset
                for placed in placed_patches(part) if mark != UNKNOWN else ():
                    held = _Held(placed.patch, piece.index, offset, placed.row, mark)
                    self._held.setdefault(part.tensor, []).append(held)
        self._descriptor: int | None = open_for_reading(shard.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; may be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def patches(self, tensor: str) -> Sequence[Patch]:
        """What is held of the tensor, after reading the pieces that hold it and comparing them with their sums."""
        return [held.patch for held in self._held.get(tensor, ()) if self._check(held.piece)]

    def read(self, patch: Patch, out: memoryview) -> None:
        """See ``SliceSource``; all must lie within one of :meth:`patches`.

        Raises:
            ModelFileError: it does not, or the file cannot be read.
        """
        for held in self._held.get(patch.tensor, ()):
            if intersect(patch, held.patch) == patch and self._check(held.piece):
                row, runs = held.row + patch.rows.start - held.patch.rows.start, patch.runs_in(held.patch.columns)
                if held.mark == AS_IT_WAS:
                    self._table(held, row).read(runs, patch.rows.size, out)
                else:
                    target = np.frombuffer(out, np.uint8).reshape(patch.rows.size, -1)
                    self._restore(held, row, runs, target)
                return
        raise ModelFileError(f"{self._shard.path} does not hold the rows of {patch.tensor} that are asked for")

    def _table(self, held: _Held, row: int) -> RowTable:
        assert self._descriptor is not None, "closed"
        row_bytes = held.patch.row_bytes
        return RowTable(self._descriptor, self._shard.path, held.offset + row * row_bytes, row_bytes)

    def _restore(self, held: _Held, row: int, runs: Spans, out: npt.NDArray[np.uint8]) -> None:
        """Fills ``out`` with rows from ``row`` of a rearranged part, in strips of whole cells."""
        restorer = self._restorers[held.mark - 1]
        n_cell_rows = restorer.order.n_rows
        row_bytes = held.patch.row_bytes
        step = max(1, BUFFER_BYTES // (4 * n_cell_rows * row_bytes)) * n_cell_rows
        done = 0
        while done < len(out):
            start = (row + done) // n_cell_rows * n_cell_rows
            stop = min(start + step, round_up(row + len(out), n_cell_rows))
            strip = np.empty((stop - start, row_bytes), np.uint8)
            self._table(held, start).read((Span(0, row_bytes),), len(strip), strip.data.cast("B"))
            rows = restorer.restore(strip)[row + done - start :][: len(out) - done]
            gather(rows, runs, out[done : done + len(rows)])
            done += len(rows)

    def _check(self, piece: int) -> bool:
        if piece not in self._is_sound:
            self._is_sound[piece] = self._is_like_its_sums(piece)
        return self._is_sound[piece]

    def _is_like_its_sums(self, index: int) -> bool:
        assert self._descriptor is not None, "closed"
        try:
            return next(self._shard.damaged_runs(index, self._descriptor), None) is None
        except ModelFileError:
            return False
