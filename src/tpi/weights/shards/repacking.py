"""Weights in the order in which the kernels of a device compute faster: which parts of a rank, and in which order.

A rearranged shard has the same pieces, parts and sizes as a plain one; the bytes of the parts that the kernels take are
in another order within the part. Which parts these are is the kernels' decision, the same when the shard is made and
when it is used. The header says in which order they are, so that later shards can be made from it (``orders``).
"""

from typing import Protocol

import msgspec

from tpi.weights.layout import Part, Piece
from tpi.weights.shards.orders import AS_IT_WAS, Orders
from tpi.weights.shards.shard_format import ShardHeader


class RepackingKernels(Protocol):
    """Kernels that want weights in their own order."""

    @property
    def name(self) -> str:
        """Changes with everything that changes the order: library, CPU."""

    def takes(self, type_id: int, n_columns: int, n_rows: int) -> bool:
        """Whether a matrix of this type and size is rearranged."""

    def rearrange(self, type_id: int, n_columns: int, n_rows: int, source: memoryview, out: memoryview) -> None:
        """Writes the rearranged bytes of ``source`` to ``out``, of equal length and not the same memory."""


def repacks(repacker: RepackingKernels, part: Part) -> bool:
    """Whether the repacker rearranges this part."""
    return not part.is_whole and repacker.takes(part.type_id, part.n_columns, part.n_rows)


def repacked_share(repacker: RepackingKernels, pieces: tuple[Piece, ...]) -> float:
    """The part of all bytes that the repacker rearranges, 0 to 1."""
    parts = [part for piece in pieces for part in piece.parts]
    total = sum(part.n_bytes for part in parts)
    return sum(part.n_bytes for part in parts if repacks(repacker, part)) / total if total else 0.0


def repacked_header(header: ShardHeader, pieces: tuple[Piece, ...], repacker: RepackingKernels) -> ShardHeader:
    """The header of the rearranged shard, for that of a plain one with these pieces. Tries the kernels: takes up to a
    few seconds."""
    orders = Orders(repacker)
    marks = bytes(
        orders.mark_of(part) if repacks(repacker, part) else AS_IT_WAS for piece in pieces for part in piece.parts
    )
    return msgspec.structs.replace(header, repacking=repacker.name, orders=tuple(orders.found), marks=marks)
