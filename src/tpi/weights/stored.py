"""How a rank's pieces are read from disk into memory: from a shard, or straight from GGUF files. Arithmetic, no I/O."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tpi.errors import ModelFileError
from tpi.gguf.reader import Gguf
from tpi.model.spans import Span
from tpi.weights.files import PAGE_BYTES, round_up
from tpi.weights.layout import Part, Piece
from tpi.weights.shards.shard import Shard


@dataclass(frozen=True, slots=True)
class Extent:
    """``n_bytes`` from ``file_offset`` of file ``file`` go to ``arena_offset`` of the piece's place in memory.

    Both offsets are multiples of 4096; the place has room for ``n_bytes`` rounded up to that.
    """

    file: int
    file_offset: int
    n_bytes: int
    arena_offset: int


@dataclass(frozen=True, slots=True)
class StoredPiece:
    """A piece on disk. It takes ``arena_bytes`` (a multiple of 4096) of memory; part i starts at ``part_offsets[i]``.

    Parts from a shard start at multiples of 64. Parts from GGUF files start where they do there: whole tensors at
    multiples of 32, later rows of a tensor anywhere, which ggml's kernels allow.
    """

    index: int
    extents: tuple[Extent, ...]
    arena_bytes: int
    part_offsets: tuple[int, ...]
    is_on_demand: bool = False
    """Only some passes need it, and say so: an expert. All others are needed by every pass, in their order."""


@dataclass(frozen=True)
class StoredWeights:
    """All pieces of a rank, in execution order, and the files that ``Extent.file`` counts."""

    paths: tuple[Path, ...]
    pieces: tuple[StoredPiece, ...]

    @property
    def arena_bytes(self) -> int:
        """The memory that all pieces take together."""
        return sum(piece.arena_bytes for piece in self.pieces)


def stored_from_shard(shard: Shard) -> StoredWeights:
    """The pieces of a shard: one extent each."""
    pieces = []
    for piece in shard.pieces:
        extent = Extent(0, shard.file_offset(piece.index), piece.n_bytes, 0)
        offsets = tuple(part.offset for part in piece.parts)
        is_on_demand = piece.expert is not None
        pieces.append(StoredPiece(piece.index, (extent,), round_up(piece.n_bytes), offsets, is_on_demand))
    return StoredWeights((shard.path,), tuple(pieces))


def lies_in_gguf(gguf: Gguf, pieces: Iterable[Piece]) -> bool:
    """Whether every part is a run of bytes of ``gguf``, so that no shard is needed: one range of whole rows, or of one
    row's columns."""
    return all(
        gguf.tensors[part.tensor].recipe is None and _is_run(part, gguf.tensors[part.tensor].n_columns)
        for piece in pieces
        for part in piece.parts
        if part.tensor in gguf.tensors
    )


def _is_run(part: Part, n_columns: int) -> bool:
    if len(part.rows) != 1 or len(part.columns) != 1:
        return False
    return part.columns[0] == Span(0, n_columns) or part.rows[0].size == 1


def stored_from_gguf(gguf: Gguf, pieces: Sequence[Piece]) -> StoredWeights:
    """The pieces where they lie in the model's own files; only if :func:`lies_in_gguf`.

    Raises:
        ModelFileError: the model has no such tensor or rows.
    """
    assert lies_in_gguf(gguf, pieces), "a part is no run of bytes of the model"
    return StoredWeights(gguf.paths, tuple(_gguf_piece(gguf, piece) for piece in pieces))


@dataclass(frozen=True)
class _Run:
    """Bytes of a file that one part needs."""

    file: int
    start: int
    stop: int


def _gguf_piece(gguf: Gguf, piece: Piece) -> StoredPiece:
    runs = [_run_of(gguf, part) for part in piece.parts]
    extents: list[Extent] = []
    used = 0
    for run in sorted(set(runs), key=lambda run: (run.file, run.start)):
        start = run.start // PAGE_BYTES * PAGE_BYTES
        last = extents[-1] if extents else None
        if last and last.file == run.file and start <= last.file_offset + round_up(last.n_bytes):
            n_bytes = max(last.n_bytes, run.stop - last.file_offset)
            extents[-1] = Extent(last.file, last.file_offset, n_bytes, last.arena_offset)
        else:
            extents.append(Extent(run.file, start, run.stop - start, used))
        used = extents[-1].arena_offset + round_up(extents[-1].n_bytes)
    offsets = tuple(_place(extents, run) for run in runs)
    return StoredPiece(piece.index, tuple(extents), used, offsets, piece.expert is not None)


def _run_of(gguf: Gguf, part: Part) -> _Run:
    tensor = gguf.tensors.get(part.tensor)
    rows, columns = part.rows[0], part.columns[0]
    if (
        tensor is None
        or tensor.type.id != part.type_id
        or not 0 <= rows.start <= rows.stop <= tensor.n_rows
        or not 0 <= columns.start <= columns.stop <= tensor.n_columns
    ):
        raise ModelFileError(f"{os.fspath(gguf.paths[0])} does not have the rows of {part.tensor} that are asked for")
    kind = tensor.type
    start = tensor.offset + rows.start * kind.row_bytes(tensor.n_columns) + kind.row_bytes(columns.start)
    return _Run(tensor.file, start, start + part.n_bytes)


def _place(extents: list[Extent], run: _Run) -> int:
    for extent in extents:
        if extent.file == run.file and extent.file_offset <= run.start < extent.file_offset + extent.n_bytes:
            return extent.arena_offset + run.start - extent.file_offset
    raise AssertionError("no extent has the run")
