"""An older shard as a source of slices: what a changed share still needs of it does not travel again.

Owns one descriptor. A piece is compared with its sums before anything of it is used: damage must not get new sums.
One thread at a time.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tpi.errors import ModelFileError
from tpi.gguf.types import TYPES_BY_ID
from tpi.model.blocks import Span
from tpi.weights.files import open_for_reading
from tpi.weights.layout import Part
from tpi.weights.shards.assemble import Patch, intersect
from tpi.weights.shards.shard import Shard, damaged_runs
from tpi.weights.slices import RowTable


@dataclass(frozen=True)
class _Held:
    """A part of the shard: which patch of its tensor it is, and where it lies."""

    patch: Patch
    piece: int
    offset: int
    row_bytes: int


class ShardSource:
    """Reads slices of what a shard holds; what its disk has damaged counts as not held."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._held: dict[str, list[_Held]] = {}
        self._is_sound: dict[int, bool] = {}
        for piece in shard.pieces:
            for part in piece.parts:
                rows = Span(part.first_row + part.rows.start, part.first_row + part.rows.stop)
                offset = shard.file_offset(piece.index) + part.offset
                held = _Held(Patch(rows, part.columns), piece.index, offset, part.row_bytes)
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

    def read(self, part: Part, rows: Span, out: memoryview) -> None:
        """See ``SliceSource``; all must lie within one of :meth:`patches`.

        Raises:
            ModelFileError: it does not, or the file cannot be read.
        """
        assert self._descriptor is not None, "closed"
        wanted = Patch(Span(part.first_row + rows.start, part.first_row + rows.stop), part.columns)
        kind = TYPES_BY_ID[part.type_id]
        for held in self._held.get(part.tensor, ()):
            if intersect(wanted, held.patch) == wanted and self._check(held.piece):
                place = held.offset + (wanted.rows.start - held.patch.rows.start) * held.row_bytes
                first_byte = kind.row_bytes(wanted.columns.start - held.patch.columns.start)
                RowTable(self._descriptor, self._shard.path, place, held.row_bytes).read(first_byte, rows.size, out)
                return
        raise ModelFileError(f"{self._shard.path} does not hold the rows of {part.tensor} that are asked for")

    def _check(self, piece: int) -> bool:
        if piece not in self._is_sound:
            self._is_sound[piece] = self._is_like_its_sums(piece)
        return self._is_sound[piece]

    def _is_like_its_sums(self, index: int) -> bool:
        assert self._descriptor is not None, "closed"
        record = self._shard.header.records[index]
        try:
            runs = damaged_runs(self._descriptor, self._shard.path, self._shard.file_offset(index), record)
            return next(runs, None) is None
        except ModelFileError:
            return False
