"""The shard file: one rank's bytes of a model, in execution order. This module is its format; no input or output.

All numbers are little-endian; ``sum`` is zlib's crc32. A shard is complete under its own name only (see
``shard_writer``).

======  ======  =========================================================================================
offset  bytes   what
======  ======  =========================================================================================
0       8       ``TPISHARD``
8       4       version, 3
12      4       n, length of the header, at most 64 MiB
16      n       the header: msgpack of :class:`ShardHeader`
16+n    4       sum of the bytes before
...             zeros to the next multiple of 4096, where the data starts
                the pieces, each from a multiple of 4096, zeros between; the file ends at a multiple of 4096
======  ======  =========================================================================================

A piece's ``offset`` counts from the start of the data; its ``sums`` are those of its runs of 256 KiB, 4 bytes each, so
that damage can be placed. crc32 is meant for damage by disks, not by people: it finds all bursts of up to 32 bits and
misses one in 2^32 of others, runs at twice the speed of sha256, and a shard never leaves its owner's devices; links
have their own authentication.
"""

import zlib
from collections.abc import Sequence

import msgspec

from tpi.model.partition import Partition
from tpi.model.spec import ModelSpec
from tpi.weights.files import round_up
from tpi.weights.layout import Piece

MAGIC = b"TPISHARD"
VERSION = 3
START_BYTES = 16
SUM_BYTES = 4
SUM_RUN_BYTES = 1 << 18
MAX_HEADER_BYTES = 1 << 26


class PieceRecord(msgspec.Struct, frozen=True, array_like=True):
    """Where a piece lies in the data, and its sums."""

    piece: Piece
    offset: int
    sums: bytes


class ShardHeader(msgspec.Struct, frozen=True):
    """What a shard says of itself; the model's digest is ``spec.digest``.

    ``packing`` names the kernels for which the bytes of parts were rearranged (``weights.shards.packing``); this
    device alone can use such a shard. Empty: the model's own bytes.
    """

    spec: ModelSpec
    partition: Partition
    rank: int
    records: tuple[PieceRecord, ...]
    packing: str = ""


def n_sum_bytes(piece: Piece) -> int:
    """The length of a piece's sums."""
    return -(-piece.n_bytes // SUM_RUN_BYTES) * SUM_BYTES


def sum_runs(data: memoryview) -> bytes:
    """The sums of a whole piece."""
    runs = range(0, len(data), SUM_RUN_BYTES)
    return b"".join(zlib.crc32(data[at : at + SUM_RUN_BYTES]).to_bytes(SUM_BYTES, "little") for at in runs)


def blank_header(
    spec: ModelSpec, partition: Partition, rank: int, pieces: Sequence[Piece], packing: str = ""
) -> ShardHeader:
    """The header of a shard of these pieces, with zeros for sums."""
    records, offset = [], 0
    for piece in pieces:
        records.append(PieceRecord(piece, offset, bytes(n_sum_bytes(piece))))
        offset += round_up(piece.n_bytes)
    return ShardHeader(spec, partition, rank, tuple(records), packing)


def data_bytes(header: ShardHeader) -> int:
    """The length of the data, padding included."""
    return sum(round_up(record.piece.n_bytes) for record in header.records)


def encode_header(header: ShardHeader) -> bytes:
    """Everything before the data, padding included. Its length does not depend on the values of the sums."""
    body = msgspec.msgpack.encode(header)
    start = MAGIC + VERSION.to_bytes(4, "little") + len(body).to_bytes(4, "little") + body
    start += zlib.crc32(start).to_bytes(SUM_BYTES, "little")
    return start.ljust(round_up(len(start)), b"\0")
