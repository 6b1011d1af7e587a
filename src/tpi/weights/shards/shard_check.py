"""That a shard's header fits itself and its file, so that nothing read later can lie outside of either. No input."""

from pathlib import Path
from typing import NoReturn

from tpi.errors import ModelFileError
from tpi.model.architectures import blocks_of, check_spec
from tpi.model.blocks import Block
from tpi.model.partition import is_whole
from tpi.model.spans import Share, total_size
from tpi.model.spec import ModelSpec
from tpi.weights.shards.orders import are_possible
from tpi.weights.shards.shard_format import SUM_BYTES, ShardHeader, ShardLayout, layout_of

_MAX_EXTENT = 1 << 40
_MAX_EXPERTS = 1 << 20
"""Of all blocks together."""


def check_header(path: Path, header: ShardHeader, n_sum_bytes: int, data_bytes: int) -> ShardLayout:
    """Checks the header of the shard at ``path``, which has so many bytes of sums and of data; returns what follows
    from it.

    Raises:
        ModelFileError, UnsupportedModelError: something in the header cannot be.
    """
    check = _Check(path)
    try:
        check.model(header.spec)
        blocks = blocks_of(header.spec)
        check.partition(blocks, header)
        check.count(blocks, header, n_sum_bytes // SUM_BYTES)
        layout = layout_of(header)
    except (ValueError, LookupError, ArithmeticError) as error:
        check.fail(f"its header cannot be used ({error})")
    check.sizes(layout, n_sum_bytes, data_bytes)
    check.orders(layout, header)
    return layout


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
            self.require(0 < tensor.n_columns < _MAX_EXTENT and 0 < tensor.n_rows < _MAX_EXTENT, f"shape of {name!r}")
        self.require(0 < spec.n_layers <= len(spec.tensors), f"count of {spec.n_layers} layers")
        check_spec(spec, self._path)

    def partition(self, blocks: tuple[Block, ...], header: ShardHeader) -> None:
        n_ranks = header.partition.n_ranks
        self.require(0 <= header.rank < n_ranks, f"rank {header.rank} of {n_ranks}")
        self.require(is_whole(blocks, header.partition), "partition")

    def count(self, blocks: tuple[Block, ...], header: ShardHeader, n_sums: int) -> None:
        """Not more pieces than sums, as far as can be told without laying them out, which would take that long."""
        self.require(0 < header.piece_bytes < _MAX_EXTENT, f"limit of {header.piece_bytes} bytes")
        self.require(sum(block.experts.n for block in blocks if block.experts) <= _MAX_EXPERTS, "number of experts")
        least = sum(
            _least_pieces(block, header.partition.shares[block.index][header.rank], header.piece_bytes)
            for block in blocks
        )
        self.require(least <= n_sums, f"number of {n_sums} sums")

    def sizes(self, layout: ShardLayout, n_sum_bytes: int, data_bytes: int) -> None:
        self.require(n_sum_bytes == layout.n_sum_bytes, f"number of {n_sum_bytes // SUM_BYTES} sums")
        if layout.data_bytes > data_bytes:
            raise ModelFileError(
                f"{self._path} is truncated: {data_bytes:,} bytes of data instead of {layout.data_bytes:,}; make or "
                "fetch it again"
            )
        self.require(layout.data_bytes == data_bytes, f"size of {layout.data_bytes:,} bytes")

    def orders(self, layout: ShardLayout, header: ShardHeader) -> None:
        if not header.marks:
            return
        parts = [part for piece in layout.pieces for part in piece.parts]
        is_right = len(header.marks) == len(parts) and are_possible(header.orders, header.marks, parts)
        self.require(header.repacking != "" and is_right, "order of parts")


def _least_pieces(block: Block, share: Share, piece_bytes: int) -> int:
    """What a rank has of the block makes at least so many pieces."""
    least = 0
    for slot in () if share.is_empty else block.slots:
        extent = slot.extent(share)
        n_columns = total_size(extent.columns)
        if n_columns and not slot.is_whole:
            most_rows = max(1, piece_bytes // slot.tensor.type.row_bytes(n_columns))
            least = max(least, -(-total_size(extent.rows) // most_rows))
    if block.experts is not None:
        least += min(block.experts.n, share.spans[block.experts.measure].size // block.experts.unit)
    return least
