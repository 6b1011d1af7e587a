"""Puts a shard together: from older shards of the same model whatever overlaps, the rest from its primary source.

Holds one piece, a part that is to be rearranged, and a strip of 4 MB in memory. The calling thread does it all; sources
and files stay their owners'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from tpi.weights.layout import Part, Piece
from tpi.weights.patches import Patch, intersect, placed_patches, scatter, subtract
from tpi.weights.shards.orders import AS_IT_WAS
from tpi.weights.shards.repacking import RepackingKernels
from tpi.weights.shards.shard import ByteProgress, Shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.shard_writer import ShardWriter
from tpi.weights.slices import BUFFER_BYTES, SliceSource

_Bytes: TypeAlias = npt.NDArray[np.uint8]


class PartialSource(SliceSource, Protocol):
    """A source that has some of a model's bytes."""

    def patches(self, tensor: str) -> Sequence[Patch]:
        """What can be read of the tensor; each read must lie within one of these."""


@dataclass(frozen=True)
class AssemblyReport:
    """Bytes of weights in a new shard: left by an earlier attempt, taken from older shards, read from the primary."""

    shard: Shard
    resumed_bytes: int
    reused_bytes: int
    fetched_bytes: int


def write_shard(
    path: Path,
    header: ShardHeader,
    primary: SliceSource,
    reuse: Sequence[PartialSource] = (),
    progress: ByteProgress | None = None,
    repacker: RepackingKernels | None = None,
) -> AssemblyReport:
    """Writes the shard that ``header`` describes to ``path``, blocking; goes on where an earlier attempt broke off.

    ``progress`` is called after every piece with bytes done and in all, resumed ones included. ``repacker`` rearranges
    what the header says is rearranged; None: nothing is.

    Raises:
        DiskSpaceError: no room; nothing is left behind.
        ModelFileError, LinkError, ChecksumError: from the sources or the disk; what is done is kept for the next try.
    """
    with ShardWriter(path, header) as writer:
        pieces = writer.layout.pieces
        total = sum(piece.n_bytes for piece in pieces)
        done = resumed = sum(piece.n_bytes for piece in pieces[: writer.n_finished])
        left = pieces[writer.n_finished :]
        buffer = memoryview(bytearray(max((piece.n_bytes for piece in left), default=0)))
        assembly = _Assembly(primary, reuse, repacker)
        n_parts = sum(len(piece.parts) for piece in pieces[: writer.n_finished])
        if progress is not None:
            progress(done, total)
        for piece in left:
            data = buffer[: piece.n_bytes]
            marks = [header.mark(n_parts + number) for number in range(len(piece.parts))]
            assembly.fill(piece, marks, data)
            writer.write(data)
            done, n_parts = done + piece.n_bytes, n_parts + len(piece.parts)
            if progress is not None:
                progress(done, total)
        return AssemblyReport(writer.finish(), resumed, assembly.reused, assembly.fetched)


class _Assembly:
    """Fills pieces and counts where the bytes came from."""

    def __init__(self, primary: SliceSource, reuse: Sequence[PartialSource], repacker: RepackingKernels | None) -> None:
        self._primary, self._reuse, self._repacker = primary, reuse, repacker
        self._scratch = bytearray()
        self.reused = 0
        self.fetched = 0

    def fill(self, piece: Piece, marks: Sequence[int], out: memoryview) -> None:
        np.frombuffer(out, np.uint8).fill(0)  # the gaps between parts
        for part, mark in zip(piece.parts, marks, strict=True):
            target = out[part.offset : part.offset + part.n_bytes]
            if mark == AS_IT_WAS:
                self._fill_part(part, target)
                continue
            assert self._repacker is not None, "nobody rearranges"
            if len(self._scratch) < part.n_bytes:
                self._scratch = bytearray(part.n_bytes)
            source = memoryview(self._scratch)[: part.n_bytes]
            self._fill_part(part, source)
            self._repacker.rearrange(part.type_id, part.n_columns, part.n_rows, source, target)

    def _fill_part(self, part: Part, out: memoryview) -> None:
        target = np.frombuffer(out, np.uint8).reshape(part.n_rows, part.row_bytes)
        for placed in placed_patches(part):
            rows = target[placed.row : placed.row + placed.patch.rows.size]
            missing = [placed.patch]
            for source in self._reuse:
                for held in source.patches(part.tensor) if missing else ():
                    left: list[Patch] = []
                    for wanted in missing:
                        found = intersect(wanted, held)
                        if found.is_empty:
                            left.append(wanted)
                        else:
                            self.reused += _copy(source, found, placed.patch, rows)
                            left.extend(subtract(wanted, found))
                    missing = left
            for wanted in missing:
                self.fetched += _copy(self._primary, wanted, placed.patch, rows)


def _copy(source: SliceSource, patch: Patch, whole: Patch, out: _Bytes) -> int:
    """Reads ``patch`` to its place in ``out``, uint8 [rows, bytes], which is for ``whole``; returns its bytes."""
    runs, first = patch.runs_in(whole.columns), patch.rows.start - whole.rows.start
    target = out[first : first + patch.rows.size]
    if patch.columns == whole.columns:
        source.read(patch, target.data.cast("B"))
        return patch.n_bytes
    step = max(1, BUFFER_BYTES // patch.row_bytes)
    buffer = np.empty((min(step, patch.rows.size), patch.row_bytes), np.uint8)
    for row in range(0, patch.rows.size, step):
        strip = buffer[: min(step, patch.rows.size - row)]
        start = patch.rows.start + row
        source.read(patch.with_rows(start, start + len(strip)), strip.data.cast("B"))
        scatter(strip, runs, target[row : row + len(strip)])
    return patch.n_bytes
