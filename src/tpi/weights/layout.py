"""How one rank's slices lie in pieces: the order and place of every run of rows. Pure arithmetic, no I/O.

A piece is a run of at most ``PIECE_BYTES`` of one block. Slices are put one after the other in the order in which the
graph uses them, cut between rows where a piece is full. Such a cut changes no sum, so results do not depend on the size
of pieces.
"""

from collections.abc import Sequence

import msgspec

from tpi.gguf.types import TYPES_BY_ID
from tpi.model.blocks import Axis, Block, Share, Slot, Span
from tpi.model.partition import Partition

PIECE_BYTES = 16_000_000
PART_ALIGNMENT = 64
"""Every part starts at a multiple of this within its piece (cache lines, ggml's widest vectors)."""

CUT_ROWS = 64
"""Slices are cut at multiples of this, where a piece has room for as many rows: kernels that compute tiles of rows then
make the same sums as uncut (unless the whole slice has an odd number of rows, as some F16 heads have)."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one slice inside a piece.

    ``rows`` counts within the rank's slice of the tensor; ``columns`` are those of the whole tensor that the slice has
    (all for row cuts), ``first_row`` is where the slice's row 0 lies in the whole tensor. The bytes are
    ``rows.size * row_bytes`` at ``offset`` in the piece, rows contiguous.
    """

    role: str
    tensor: str
    type_id: int
    first_row: int
    rows: Span
    columns: Span
    offset: int

    @property
    def row_bytes(self) -> int:
        return TYPES_BY_ID[self.type_id].row_bytes(self.columns.size)

    @property
    def n_bytes(self) -> int:
        return self.rows.size * self.row_bytes


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """The unit that is loaded: ``n_bytes`` of block ``block``; ``index`` counts a rank's pieces in execution order."""

    index: int
    block: int
    n_bytes: int
    parts: tuple[Part, ...]


def lay_out(
    blocks: Sequence[Block], partition: Partition, rank: int, piece_bytes: int = PIECE_BYTES
) -> tuple[Piece, ...]:
    """The pieces of ``rank``, in execution order. A row longer than ``piece_bytes`` makes a piece of its own."""
    pieces: list[Piece] = []
    for block in blocks:
        share = partition.shares[block.index][rank]
        if not share.is_empty:
            pieces.extend(_lay_out_block(block, share, len(pieces), piece_bytes))
    return tuple(pieces)


def slice_extent(slot: Slot, share: Share) -> tuple[Span, Span]:
    """Rows and columns of the slot's whole tensor that ``share`` holds."""
    span, tensor = slot.span(share), slot.tensor
    if slot.axis is Axis.COLUMNS:
        return Span(0, tensor.n_rows), span
    return span, Span(0, tensor.n_columns)


def _lay_out_block(block: Block, share: Share, first_index: int, piece_bytes: int) -> list[Piece]:
    pieces: list[Piece] = []
    parts: list[Part] = []
    used = 0

    def close() -> None:
        nonlocal parts, used
        if parts:
            end = parts[-1].offset + parts[-1].n_bytes
            pieces.append(Piece(first_index + len(pieces), block.index, end, tuple(parts)))
        parts, used = [], 0

    for slot in block.slots:
        rows, columns = slice_extent(slot, share)
        if not columns.size:
            continue
        row_bytes = slot.tensor.type.row_bytes(columns.size)
        row = 0
        while row < rows.size:
            offset = -(-used // PART_ALIGNMENT) * PART_ALIGNMENT
            fitting, left = (piece_bytes - offset) // row_bytes, rows.size - row
            count = left if fitting >= left else 0 if slot.is_whole else fitting // CUT_ROWS * CUT_ROWS
            if count <= 0 and parts:
                close()
                continue
            count = count if count > 0 else left if slot.is_whole else min(left, max(fitting, 1))
            part = Part(
                slot.role,
                slot.tensor.name,
                slot.tensor.type_id,
                rows.start,
                Span(row, row + count),
                columns,
                offset,
            )
            parts.append(part)
            used = offset + part.n_bytes
            row += count
    close()
    return pieces
