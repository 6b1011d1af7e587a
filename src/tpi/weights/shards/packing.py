"""Makes a rearranged copy of a rank's weights, for kernels that compute faster with it.

The copy has the same pieces, parts and sizes; the bytes of the parts that the kernels take are in another order within
the part. It is a shard file of its own, whose header names the kernels. Which parts are rearranged is the packer's
decision, the same when the copy is made and when it is used. Holds two pieces; blocks its caller.
"""

import mmap
from pathlib import Path
from typing import Protocol

import numpy as np

from tpi.weights.layout import Part, Piece
from tpi.weights.shards.shard import ByteProgress, Shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.shard_writer import ShardWriter
from tpi.weights.stored import StoredWeights
from tpi.weights.streaming.disk import PieceReader


class Packer(Protocol):
    """Kernels that want weights in their own order."""

    @property
    def name(self) -> str:
        """Changes with everything that changes the order: library, CPU."""

    def takes(self, type_id: int, n_columns: int, n_rows: int) -> bool:
        """Whether a matrix of this type and size is rearranged."""

    def rearrange(self, type_id: int, n_columns: int, n_rows: int, source: memoryview, out: memoryview) -> None:
        """Writes the rearranged bytes of ``source`` to ``out``, of equal length and not the same memory."""


def packs(packer: Packer, part: Part) -> bool:
    """Whether the packer rearranges this part."""
    return packer.takes(part.type_id, part.columns.size, part.rows.size)


def packed_share(packer: Packer, pieces: tuple[Piece, ...]) -> float:
    """The part of all bytes that the packer rearranges, 0 to 1."""
    parts = [part for piece in pieces for part in piece.parts]
    total = sum(part.n_bytes for part in parts)
    return sum(part.n_bytes for part in parts if packs(packer, part)) / total if total else 0.0


def write_packed(
    path: Path, header: ShardHeader, stored: StoredWeights, packer: Packer, progress: ByteProgress
) -> Shard:
    """Writes the rearranged copy of ``stored`` that ``header`` describes to ``path``; goes on where an earlier attempt
    broke off. ``progress`` as in ``weights.shards.assemble.write_shard``.

    Raises:
        DiskSpaceError, ModelFileError: no room, or the weights cannot be read.
    """
    pieces = [record.piece for record in header.records]
    total = sum(piece.n_bytes for piece in pieces)
    with ShardWriter(path, header) as writer, PieceReader(stored) as reader:
        source = memoryview(mmap.mmap(-1, max((piece.arena_bytes for piece in stored.pieces), default=mmap.PAGESIZE)))
        target = memoryview(bytearray(max((piece.n_bytes for piece in pieces), default=0)))
        done = sum(piece.n_bytes for piece in pieces[: writer.n_finished])
        progress(done, total)
        for piece in pieces[writer.n_finished :]:
            place = stored.pieces[piece.index]
            reader.read(place, source[: place.arena_bytes])
            out = target[: piece.n_bytes]
            np.frombuffer(out, np.uint8).fill(0)
            for part, offset in zip(piece.parts, place.part_offsets, strict=True):
                _pack(packer, part, source[offset : offset + part.n_bytes], out[part.offset :][: part.n_bytes])
            writer.write(out)
            done += piece.n_bytes
            progress(done, total)
        return writer.finish()


def _pack(packer: Packer, part: Part, source: memoryview, out: memoryview) -> None:
    if packs(packer, part):
        packer.rearrange(part.type_id, part.columns.size, part.rows.size, source, out)
    else:
        out[:] = source
