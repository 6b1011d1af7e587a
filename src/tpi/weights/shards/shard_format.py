"""The shard file: one rank's bytes of a model, in execution order. This module is its format; no input or output.

All numbers are little-endian; ``sum`` is zlib's crc32. A shard is complete under its own name only (see
``shard_writer``).

======  ======  =========================================================================================
offset  bytes   what
======  ======  =========================================================================================
0       8       ``TPISHARD``
8       4       version, 4
12      4       n, length of the header
16      4       m, length of the sums; n and m are at most 16 MiB together
20      n       the header: msgpack of :class:`ShardHeader`
20+n    m       the sums of the pieces, one after the other
20+n+m  4       sum of the bytes before
...             zeros to the next multiple of 4096, where the data starts
                the pieces, each from a multiple of 4096, zeros between; the file ends at a multiple of 4096
======  ======  =========================================================================================

Which pieces there are, what is in them and where they lie follows from the header (``layout_of``). A piece's sums are
those of its runs of 256 KiB, 4 bytes each, so that damage can be placed. crc32 is meant for damage by disks, not by
people: it finds all bursts of up to 32 bits and misses one in 2^32 of others, runs at twice the speed of sha256, and a
shard never leaves its owner's devices; links have their own authentication.
"""

import zlib
from dataclasses import dataclass

import msgspec

from tpi.model.architectures import blocks_of
from tpi.model.partition import Partition
from tpi.model.spec import ModelSpec
from tpi.weights.files import round_up
from tpi.weights.layout import PIECE_BYTES, Piece, lay_out
from tpi.weights.shards.orders import AS_IT_WAS, UNKNOWN, Order

MAGIC = b"TPISHARD"
VERSION = 5
START_BYTES = 20
SUM_BYTES = 4
SUM_RUN_BYTES = 1 << 18
MAX_HEADER_BYTES = 1 << 24
"""Of header and sums together: those of a rank of 1 TB are 16 MB."""


class ShardHeader(msgspec.Struct, frozen=True):
    """What a shard says of itself; the model's digest is ``spec.digest``. No piece is longer than ``piece_bytes``, but
    for what ``weights.layout`` does not cut.

    ``repacking`` names the kernels for which the bytes of parts were rearranged (``weights.shards.repacking``); they
    alone compute with such a shard. Empty: the model's own bytes. ``marks`` say of every part, in the order of the
    pieces, in which of ``orders`` it is, counted from 1, or ``orders.AS_IT_WAS`` or ``orders.UNKNOWN``; empty: of no
    part.
    """

    spec: ModelSpec
    partition: Partition
    rank: int
    piece_bytes: int = PIECE_BYTES
    repacking: str = ""
    orders: tuple[Order, ...] = ()
    marks: bytes = b""

    def mark(self, part: int) -> int:
        """Of the part with this number."""
        if self.marks:
            return self.marks[part]
        return UNKNOWN if self.repacking else AS_IT_WAS


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """Where the pieces of a shard lie: from ``offsets`` of its data, of ``data_bytes`` in all, padding included; and
    their sums from ``sum_offsets`` of all of them, of ``n_sum_bytes``."""

    pieces: tuple[Piece, ...]
    offsets: tuple[int, ...]
    data_bytes: int
    sum_offsets: tuple[int, ...]
    n_sum_bytes: int

    def sums_of(self, piece: int, sums: bytes) -> bytes:
        """The sums of one piece among those of all."""
        start = self.sum_offsets[piece]
        return sums[start : start + n_sum_bytes(self.pieces[piece])]


def layout_of(header: ShardHeader) -> ShardLayout:
    """The pieces that a header stands for."""
    pieces = lay_out(blocks_of(header.spec), header.partition, header.rank, header.piece_bytes)
    offsets, sum_offsets, place, sum_place = list[int](), list[int](), 0, 0
    for piece in pieces:
        offsets.append(place)
        sum_offsets.append(sum_place)
        place, sum_place = place + round_up(piece.n_bytes), sum_place + n_sum_bytes(piece)
    return ShardLayout(pieces, tuple(offsets), place, tuple(sum_offsets), sum_place)


def n_sum_bytes(piece: Piece) -> int:
    """The length of a piece's sums."""
    return -(-piece.n_bytes // SUM_RUN_BYTES) * SUM_BYTES


def sum_runs(data: memoryview) -> bytes:
    """The sums of a whole piece."""
    runs = range(0, len(data), SUM_RUN_BYTES)
    return b"".join(zlib.crc32(data[at : at + SUM_RUN_BYTES]).to_bytes(SUM_BYTES, "little") for at in runs)


def encode_start(header: ShardHeader, sums: bytes) -> bytes:
    """Everything before the data, padding included; as long whatever the values of the sums."""
    body = msgspec.msgpack.encode(header)
    start = MAGIC + b"".join(number.to_bytes(4, "little") for number in (VERSION, len(body), len(sums))) + body + sums
    start += zlib.crc32(start).to_bytes(SUM_BYTES, "little")
    return start.ljust(round_up(len(start)), b"\0")
