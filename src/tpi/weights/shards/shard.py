"""Opens and verifies shard files, see ``shard_format``; writes none. A hostile file gives an error of ours, no more.

Any thread. A :class:`Shard` holds no descriptor.
"""

import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tpi.errors import ChecksumError, ModelFileError
from tpi.model.spans import Span
from tpi.weights.files import forget_cached, open_for_reading, read_exactly, round_up
from tpi.weights.layout import Piece
from tpi.weights.shards.shard_check import check_header
from tpi.weights.shards.shard_format import (
    MAGIC,
    MAX_HEADER_BYTES,
    START_BYTES,
    SUM_BYTES,
    SUM_RUN_BYTES,
    VERSION,
    ShardHeader,
    ShardLayout,
)

ByteProgress = Callable[[int, int], None]
"""Called with bytes done and bytes in all; may raise, e.g. ``Cancelled``, to stop."""


@dataclass(frozen=True)
class Shard:
    """A shard file whose header has been read and checked. Holds no descriptor. ``n_bytes``: of the whole file."""

    path: Path
    header: ShardHeader
    layout: ShardLayout
    sums: bytes
    data_start: int
    n_bytes: int

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self.layout.pieces

    def file_offset(self, piece: int) -> int:
        """Where the piece with this index starts in the file; a multiple of 4096."""
        return self.data_start + self.layout.offsets[piece]

    def damaged_runs(self, piece: int, descriptor: int) -> Iterator[Span]:
        """The runs of a piece that differ from their sums, in bytes of the piece; ``descriptor`` is the open file.

        Raises:
            ModelFileError: the file ends early or cannot be read.
        """
        sums = self.layout.sums_of(piece, self.sums)
        return damaged_runs(descriptor, self.path, self.file_offset(piece), self.pieces[piece].n_bytes, sums)


@dataclass(frozen=True)
class Damage:
    """Bytes ``start`` to ``stop`` of the file differ from their sum; they hold some of ``tensors``."""

    piece: int
    block: int
    tensors: tuple[str, ...]
    start: int
    stop: int


def open_shard(path: Path) -> Shard:
    """Reads and checks the header of the shard at ``path``; the data's sums are not checked here.

    Raises:
        ModelFileError: missing, no shard, of another version, truncated, or damaged.
    """
    descriptor = open_for_reading(path)
    try:
        size = os.fstat(descriptor).st_size
        start = memoryview(bytearray(min(START_BYTES, size)))
        read_exactly(descriptor, path, 0, start)
        if bytes(start[:8]) != MAGIC[:size] or size < START_BYTES:
            raise ModelFileError(f"{path} is not a shard file: it starts with {bytes(start[:8])!r}")
        version, n_header, n_sums = (int.from_bytes(start[at : at + 4], "little") for at in (8, 12, 16))
        if version != VERSION:
            raise ModelFileError(f"{path} is a shard of version {version}, this program reads {VERSION}: make it again")
        if n_header + n_sums > MAX_HEADER_BYTES:
            raise ModelFileError(
                f"{path} is damaged: a header of {n_header + n_sums:,} bytes, the limit is {MAX_HEADER_BYTES:,}"
            )
        body = memoryview(bytearray(START_BYTES + n_header + n_sums + SUM_BYTES))
        read_exactly(descriptor, path, 0, body)
    finally:
        os.close(descriptor)
    if zlib.crc32(body[:-SUM_BYTES]).to_bytes(SUM_BYTES, "little") != bytes(body[-SUM_BYTES:]):
        raise ModelFileError(f"{path} is damaged: its header differs from its checksum; make or fetch it again")
    try:
        header = msgspec.msgpack.decode(body[START_BYTES : START_BYTES + n_header], type=ShardHeader)
    except msgspec.DecodeError as error:
        raise ModelFileError(f"{path} is damaged: {error}; make or fetch it again") from error
    data_start = round_up(len(body))
    layout = check_header(path, header, n_sums, size - data_start)
    return Shard(path, header, layout, bytes(body[START_BYTES + n_header : -SUM_BYTES]), data_start, size)


def verify(shard: Shard, progress: ByteProgress | None = None, descriptor: int | None = None) -> None:
    """Reads all of the shard's data and compares it with its sums, blocking; holds 256 KiB. ``descriptor``: the file,
    if the caller has it open.

    Raises:
        ChecksumError: something differs; names piece, block, tensors and bytes.
        ModelFileError: the file cannot be read.
    """
    damages = list(find_damage(shard, progress, descriptor))
    if damages:
        first, more = damages[0], f" and {len(damages) - 1} more places" if len(damages) > 1 else ""
        raise ChecksumError(
            f"{shard.path} is damaged in piece {first.piece} (block {first.block}, {' and '.join(first.tensors)}), "
            f"bytes {first.start:,} to {first.stop:,} of the file{more}: make or fetch the shard again"
        )


def find_damage(shard: Shard, progress: ByteProgress | None = None, descriptor: int | None = None) -> Iterator[Damage]:
    """The runs of the file that differ from their sums; see :func:`verify`."""
    if descriptor is None:
        opened = open_for_reading(shard.path)
        try:
            yield from find_damage(shard, progress, opened)
        finally:
            os.close(opened)
        return
    total, done = sum(piece.n_bytes for piece in shard.pieces), 0
    for piece in shard.pieces:
        place = shard.file_offset(piece.index)
        for run in shard.damaged_runs(piece.index, descriptor):
            parts = (p for p in piece.parts if p.offset < run.stop and run.start < p.offset + p.n_bytes)
            tensors = tuple(dict.fromkeys(part.tensor for part in parts))
            yield Damage(piece.index, piece.block, tensors, place + run.start, place + run.stop)
        forget_cached(descriptor, place, piece.n_bytes)
        done += piece.n_bytes
        if progress is not None:
            progress(done, total)


def damaged_runs(descriptor: int, path: Path, place: int, n_bytes: int, sums: bytes) -> Iterator[Span]:
    """The runs of a piece of ``n_bytes``, which lies at ``place`` of an open file, that differ from its sums.

    Raises:
        ModelFileError: the file ends early or cannot be read.
    """
    buffer = memoryview(bytearray(min(SUM_RUN_BYTES, n_bytes)))
    for number, at in enumerate(range(0, n_bytes, SUM_RUN_BYTES)):
        run = buffer[: n_bytes - at]
        read_exactly(descriptor, path, place + at, run)
        if zlib.crc32(run).to_bytes(SUM_BYTES, "little") != sums[number * SUM_BYTES :][:SUM_BYTES]:
            yield Span(at, at + len(run))
