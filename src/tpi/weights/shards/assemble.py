"""Puts a shard together: from older shards of the same model whatever overlaps, the rest from its primary source.

Holds one piece and a strip of 4 MB in memory. The calling thread does it all; sources and files stay their owners'.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np

from tpi.model.blocks import Span
from tpi.weights.layout import Part, Piece
from tpi.weights.shards.shard import ByteProgress, Shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.shard_writer import ShardWriter
from tpi.weights.slices import BUFFER_BYTES, SliceSource


@dataclass(frozen=True)
class Patch:
    """Rows and columns of a whole tensor."""

    rows: Span
    columns: Span

    @property
    def is_empty(self) -> bool:
        return self.rows.size <= 0 or self.columns.size <= 0


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
) -> AssemblyReport:
    """Writes the shard that ``header`` (see ``blank_header``) describes to ``path``, blocking; goes on where an earlier
    attempt broke off.

    ``progress`` is called after every piece with bytes done and in all, resumed ones included.

    Raises:
        DiskSpaceError: no room; nothing is left behind.
        ModelFileError, LinkError, ChecksumError: from the sources or the disk; what is done is kept for the next try.
    """
    pieces = [record.piece for record in header.records]
    total = sum(piece.n_bytes for piece in pieces)
    with ShardWriter(path, header) as writer:
        done = resumed = sum(piece.n_bytes for piece in pieces[: writer.n_finished])
        reused = fetched = 0
        buffer = memoryview(bytearray(max((piece.n_bytes for piece in pieces[writer.n_finished :]), default=0)))
        if progress is not None:
            progress(done, total)
        for piece in pieces[writer.n_finished :]:
            data = buffer[: piece.n_bytes]
            assembly = _Assembly(primary, reuse)
            assembly.fill(piece, data)
            writer.write(data)
            reused, fetched, done = reused + assembly.reused, fetched + assembly.fetched, done + piece.n_bytes
            if progress is not None:
                progress(done, total)
        return AssemblyReport(writer.finish(), resumed, reused, fetched)


class _Assembly:
    """Fills pieces and counts where the bytes came from."""

    def __init__(self, primary: SliceSource, reuse: Sequence[PartialSource]) -> None:
        self._primary = primary
        self._reuse = reuse
        self.reused = 0
        self.fetched = 0

    def fill(self, piece: Piece, out: memoryview) -> None:
        np.frombuffer(out, np.uint8).fill(0)  # the gaps between parts
        for part in piece.parts:
            self._fill_part(part, out[part.offset : part.offset + part.n_bytes])

    def _fill_part(self, part: Part, out: memoryview) -> None:
        rows = Span(part.first_row + part.rows.start, part.first_row + part.rows.stop)
        missing = [Patch(rows, part.columns)]
        for source in self._reuse:
            for patch in source.patches(part.tensor) if missing else ():
                left: list[Patch] = []
                for wanted in missing:
                    common = intersect(wanted, patch)
                    if common.is_empty:
                        left.append(wanted)
                    else:
                        self.reused += _copy(source, part, common, out)
                        left.extend(subtract(wanted, common))
                missing = left
        for wanted in missing:
            self.fetched += _copy(self._primary, part, wanted, out)


def _copy(source: SliceSource, part: Part, patch: Patch, out: memoryview) -> int:
    """Reads ``patch`` of the part's tensor to its place in the part; returns its bytes."""
    rows = Span(patch.rows.start - part.first_row, patch.rows.stop - part.first_row)
    if patch.columns == part.columns:
        start = (rows.start - part.rows.start) * part.row_bytes
        source.read(part, rows, out[start : start + rows.size * part.row_bytes])
        return rows.size * part.row_bytes
    narrow = msgspec.structs.replace(part, columns=patch.columns)
    before = msgspec.structs.replace(part, columns=Span(part.columns.start, patch.columns.start)).row_bytes
    target = np.frombuffer(out, np.uint8).reshape(part.rows.size, part.row_bytes)
    step = max(1, BUFFER_BYTES // narrow.row_bytes)
    buffer = np.empty((min(step, rows.size), narrow.row_bytes), np.uint8)
    for row in range(rows.start, rows.stop, step):
        strip = buffer[: min(step, rows.stop - row)]
        source.read(narrow, Span(row, row + len(strip)), strip.data.cast("B"))
        at = row - part.rows.start
        target[at : at + len(strip), before : before + narrow.row_bytes] = strip
    return rows.size * narrow.row_bytes


def intersect(a: Patch, b: Patch) -> Patch:
    """What both have; empty if nothing."""
    return Patch(
        Span(max(a.rows.start, b.rows.start), min(a.rows.stop, b.rows.stop)),
        Span(max(a.columns.start, b.columns.start), min(a.columns.stop, b.columns.stop)),
    )


def subtract(whole: Patch, hole: Patch) -> list[Patch]:
    """What is left of ``whole`` without ``hole``, which lies within it: above, left, right, below."""
    rows, columns = hole.rows, hole.columns
    left = [
        Patch(Span(whole.rows.start, rows.start), whole.columns),
        Patch(rows, Span(whole.columns.start, columns.start)),
        Patch(rows, Span(columns.stop, whole.columns.stop)),
        Patch(Span(rows.stop, whole.rows.stop), whole.columns),
    ]
    return [patch for patch in left if not patch.is_empty]
