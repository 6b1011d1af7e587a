"""How one rank's slices lie in pieces: the order and place of every run of rows. Pure arithmetic, no I/O.

A piece is a run of at most ``PIECE_BYTES`` of one block. Slices are put one after the other in the order in which the
graph uses them, cut between rows where a piece is full. Such a cut changes no sum, so results do not depend on the size
of pieces. An expert is a piece of its own, whatever its size; a block's experts follow its other pieces.
"""

from collections.abc import Iterable, Sequence

import msgspec

from tpi.gguf.types import TYPES_BY_ID
from tpi.model.blocks import Block, Slot
from tpi.model.partition import Partition
from tpi.model.spans import Share, Spans, taken, total_size

PIECE_BYTES = 16_000_000
PART_ALIGNMENT = 64
"""Every part starts at a multiple of this within its piece (cache lines, ggml's widest vectors)."""

CUT_ROWS = 64
"""Slices are cut at multiples of this, where a piece has room for as many rows: kernels that compute tiles of rows then
make the same sums as uncut (unless the whole slice has an odd number of rows, as some F16 heads have)."""


class Part(msgspec.Struct, frozen=True, array_like=True):
    """Rows of one slice inside a piece.

    ``rows`` and ``columns`` are ranges of the whole tensor: of each row in turn the bytes of the columns, one range
    after the other, without gaps, from ``offset`` in the piece.
    """

    role: str
    tensor: str
    type_id: int
    rows: Spans
    columns: Spans
    offset: int
    is_whole: bool = False
    """It is not multiplied as one matrix."""

    @property
    def n_rows(self) -> int:
        return total_size(self.rows)

    @property
    def n_columns(self) -> int:
        return total_size(self.columns)

    @property
    def row_bytes(self) -> int:
        return TYPES_BY_ID[self.type_id].row_bytes(self.n_columns)

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """The unit that is loaded: ``n_bytes`` of block ``block``; ``index`` counts a rank's pieces in execution order.
    ``expert``: the number of the expert that it is."""

    index: int
    block: int
    n_bytes: int
    parts: tuple[Part, ...]
    expert: int | None = None


def lay_out(
    blocks: Sequence[Block], partition: Partition, rank: int, piece_bytes: int = PIECE_BYTES
) -> tuple[Piece, ...]:
    """The pieces of ``rank``, in execution order. A row longer than ``piece_bytes`` makes a piece of its own."""
    pieces: list[Piece] = []
    seen: dict[Spans, Spans] = {}
    for block in blocks:
        share = partition.shares[block.index][rank]
        if not share.is_empty:
            pieces.extend(_lay_out_block(block, share, len(pieces), piece_bytes, seen))
    return tuple(pieces)


def _lay_out_block(
    block: Block, share: Share, first_index: int, piece_bytes: int, seen: dict[Spans, Spans]
) -> list[Piece]:
    """``seen``: columns, so that equal ones of many experts take memory once."""
    pieces = [
        Piece(first_index + number, block.index, _end(parts), tuple(parts))
        for number, parts in enumerate(_parts(block.slots, share, piece_bytes, seen))
    ]
    if block.experts is None:
        return pieces
    for expert in range(block.experts.n):
        columns = block.experts.columns(share, expert)
        if columns.size:
            (parts,) = _parts(block.experts.slots_of(expert), Share((columns,)), None, seen)
            pieces.append(Piece(first_index + len(pieces), block.index, _end(parts), tuple(parts), expert))
    return pieces


def _end(parts: Sequence[Part]) -> int:
    return parts[-1].offset + parts[-1].n_bytes


def _parts(slots: Iterable[Slot], share: Share, piece_bytes: int | None, seen: dict[Spans, Spans]) -> list[list[Part]]:
    """The parts of every piece; all in one if there is no limit."""
    pieces: list[list[Part]] = []
    parts: list[Part] = []
    used = 0
    for slot in slots:
        extent, tensor = slot.extent(share), slot.tensor
        columns = seen.setdefault(extent.columns, extent.columns)
        n_rows, n_columns = total_size(extent.rows), total_size(columns)
        if not n_columns:
            continue
        row_bytes, row = tensor.type.row_bytes(n_columns), 0
        while row < n_rows:
            offset, left = -(-used // PART_ALIGNMENT) * PART_ALIGNMENT, n_rows - row
            fitting = left if piece_bytes is None else (piece_bytes - offset) // row_bytes
            count = _fitting(slot, left, fitting, not parts)
            if not count:
                pieces.append(parts)
                parts, used = [], 0
                continue
            rows = extent.rows if count == n_rows else taken(extent.rows, row, row + count)
            parts.append(Part(slot.role, tensor.name, tensor.type_id, rows, columns, offset, slot.is_whole))
            used = offset + count * row_bytes
            row += count
    return [*pieces, parts] if parts else pieces


def _fitting(slot: Slot, n_left: int, n_fitting: int, is_empty: bool) -> int:
    """How many of ``n_left`` rows go into a piece that has room for ``n_fitting``; 0: the piece is full."""
    if n_fitting >= n_left:
        return n_left
    count = 0 if slot.is_whole else n_fitting // CUT_ROWS * CUT_ROWS
    if count > 0 or not is_empty:
        return max(count, 0)
    return n_left if slot.is_whole else min(n_left, max(n_fitting, 1))
