"""That a shard's header fits itself and its file, so that nothing read later can lie outside of either. No input."""

from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tpi.errors import ModelFileError
from tpi.gguf.types import TYPES_BY_ID
from tpi.model.architectures import blocks_of, check_spec
from tpi.model.blocks import Share, Slot, Span
from tpi.model.partition import is_whole
from tpi.model.spec import ModelSpec
from tpi.weights.files import round_up
from tpi.weights.layout import PART_ALIGNMENT, Part, Piece, slice_extent
from tpi.weights.shards.shard_format import PieceRecord, ShardHeader, n_sum_bytes

_MAX_EXTENT = 1 << 40


def check_header(path: Path, header: ShardHeader, data_start: int, n_bytes: int) -> None:
    """Checks the header of the shard at ``path``, whose data starts at ``data_start`` and which has ``n_bytes``.

    Raises:
        ModelFileError, UnsupportedModelError: something in the header cannot be.
    """
    check = _Check(path)
    try:
        check.model(header.spec)
        check.partition(header)
        check.pieces(header.records, n_bytes - data_start)
        check.slices(header)
    except (ValueError, LookupError, ArithmeticError) as error:
        check.fail(f"its header cannot be used ({error})")


class _Check:
    def __init__(self, path: Path) -> None:
        self._path = path

    def fail(self, what: str) -> NoReturn:
        raise ModelFileError(f"{self._path} is damaged: {what}; make or fetch it again")

    def require(self, condition: bool, what: str) -> None:
        if not condition:
            self.fail(f"the header's {what} cannot be")

    def model(self, spec: ModelSpec) -> None:
        for name, tensor in spec.tensors.items():
            self.require(tensor.name == name and tensor.type_id in TYPES_BY_ID, f"type of {name}")
            self.require(0 < tensor.n_columns < _MAX_EXTENT and 0 < tensor.n_rows < _MAX_EXTENT, f"shape of {name}")
            self.require(tensor.n_columns % tensor.type.block_elements == 0, f"shape of {name}")
        self.require(0 < spec.n_layers <= len(spec.tensors), f"count of {spec.n_layers} layers")
        check_spec(spec, self._path)

    def partition(self, header: ShardHeader) -> None:
        partition = header.partition
        self.require(0 <= header.rank < partition.n_ranks, f"rank {header.rank} of {partition.n_ranks}")
        self.require(len(partition.shares) == len(blocks_of(header.spec)), "number of blocks")
        self.require(all(len(shares) == partition.n_ranks for shares in partition.shares), "number of shares")
        self.require(is_whole(blocks_of(header.spec), partition), "partition")

    def pieces(self, records: tuple[PieceRecord, ...], data_bytes: int) -> None:
        """Pieces stand one after the other and fill the file, their parts fill them."""
        place, block = 0, 0
        for index, record in enumerate(records):
            piece = record.piece
            self.require(piece.index == index and piece.block >= block, f"order at piece {index}")
            self.require(record.offset == place, f"place of piece {index}")
            self.require(piece.n_bytes > 0 and len(record.sums) == n_sum_bytes(piece), f"size of piece {index}")
            place, block = place + round_up(piece.n_bytes), piece.block
            self._parts(piece)
        if place > data_bytes:
            raise ModelFileError(
                f"{self._path} is truncated: {data_bytes:,} bytes of data instead of {place:,}; make or fetch it again"
            )
        self.require(place == data_bytes, f"size of {place:,} bytes")

    def _parts(self, piece: Piece) -> None:
        end = 0
        for part in piece.parts:
            self.require(part.offset == round_up(end, PART_ALIGNMENT), f"order in piece {piece.index}")
            end = part.offset + part.n_bytes
        self.require(end == piece.n_bytes, f"size of piece {piece.index}")

    def slices(self, header: ShardHeader) -> None:
        """The parts of every block are the rank's slices of it, whole and in order."""
        parts: dict[int, list[Part]] = {}
        for record in header.records:
            parts.setdefault(record.piece.block, []).extend(record.piece.parts)
        for block in blocks_of(header.spec):
            share = header.partition.shares[block.index][header.rank]
            waiting = iter(parts.pop(block.index, ()))
            for slot in () if share.is_empty else block.slots:
                self._slice(slot, share, waiting)
            self.require(next(waiting, None) is None, f"number of slices of block {block.index}")
        self.require(not parts, "number of blocks")

    def _slice(self, slot: Slot, share: Share, parts: Iterator[Part]) -> None:
        tensor = slot.tensor
        rows, columns = slice_extent(slot, share)
        if not rows.size or not columns.size:
            return
        inside = 0 <= rows.start < rows.stop <= tensor.n_rows and 0 <= columns.start < columns.stop <= tensor.n_columns
        aligned = columns.start % tensor.type.block_elements == 0 and columns.stop % tensor.type.block_elements == 0
        self.require(inside and aligned, f"share of {tensor.name}")
        row = 0
        while row < rows.size:
            part = next(parts, None)
            if part is None or not row < part.rows.stop <= rows.size:
                self.fail(f"the header lacks rows of {tensor.name}")
            span = Span(row, part.rows.stop)
            wanted = Part(slot.role, tensor.name, tensor.type_id, rows.start, span, columns, part.offset)
            self.require(part == wanted, f"slice of {tensor.name}")
            row = span.stop
