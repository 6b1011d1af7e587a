"""THE partition rule: which part of every block each rank holds. Slicer, runtime and planner use this module alone.

Rows of q, k, v, gate, up and head are cut; columns of o and down; the rest is copied. Column cuts fall on quantisation
block boundaries of that tensor's type, which gives each block its unit. Pure arithmetic, no I/O.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import gcd

import msgspec

from tpi.errors import UsageError
from tpi.model.spec import Axis, Block, BlockKind, Measure, ModelSpec, Slot

FFN_UNIT_MIN = 32
"""FFN columns are never cut finer than this, so that unquantised slices keep rows of whole cache lines."""

HEAD_UNIT_ROWS = 32

_MEASURES = {BlockKind.ATTENTION: Measure.KV_HEADS, BlockKind.FFN: Measure.FFN, BlockKind.HEAD: Measure.ROWS}
"""In what :func:`unit_size` and :func:`unit_total` count."""


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The half-open range ``start`` to ``stop``."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


EMPTY = Span(0, 0)


class Share(msgspec.Struct, frozen=True, array_like=True):
    """One rank's part of one block. Unused measures are empty."""

    q_heads: Span = EMPTY
    kv_heads: Span = EMPTY
    ffn: Span = EMPTY
    rows: Span = EMPTY

    @property
    def is_empty(self) -> bool:
        return not (self.q_heads.size or self.kv_heads.size or self.ffn.size or self.rows.size)

    def of(self, measure: Measure) -> Span:
        """The range of one measure."""
        span: Span = getattr(self, measure.value)
        return span


class Partition(msgspec.Struct, frozen=True):
    """``shares[block][rank]``: what each rank holds of each block."""

    n_ranks: int
    shares: tuple[tuple[Share, ...], ...]

    def contributors(self, block: int) -> tuple[int, ...]:
        """The ranks that hold some of the block, ascending."""
        return tuple(rank for rank, share in enumerate(self.shares[block]) if not share.is_empty)


def unit_size(spec: ModelSpec, block: Block) -> int:
    """The smallest share of ``block``: KV heads (attention), FFN columns, or vocabulary rows (head)."""
    match block.kind:
        case BlockKind.ATTENTION:
            return _aligned(block, spec.heads_per_group * spec.head_dim)
        case BlockKind.FFN:
            columns = _aligned(block, 1)
            return columns * FFN_UNIT_MIN // gcd(columns, FFN_UNIT_MIN)
        case BlockKind.HEAD:
            return HEAD_UNIT_ROWS


def _aligned(block: Block, columns: int) -> int:
    """How many times ``columns`` columns make whole quantisation blocks in every column-cut tensor."""
    count = 1
    for slot in block.slots:
        if slot.axis is Axis.COLUMNS:
            elements = slot.tensor.type.block_elements
            needed = elements // gcd(elements, columns)
            count = count * needed // gcd(count, needed)
    return count


def unit_total(spec: ModelSpec, block: Block) -> int:
    """Everything that the units of ``block`` share out, in the measure of :func:`unit_size`."""
    match block.kind:
        case BlockKind.ATTENTION:
            return spec.n_kv_heads
        case BlockKind.FFN:
            return spec.n_ff
        case BlockKind.HEAD:
            return spec.n_vocab


def apportion(n_units: int, weights: Sequence[float]) -> list[int]:
    """Shares ``n_units`` out in proportion to ``weights`` by largest remainder; ties go to the lower rank.

    Raises:
        UsageError: a weight is negative or not finite, or all are zero.
    """
    if not 0 < sum(weights) < float("inf") or min(weights) < 0:
        raise UsageError(f"shares {','.join(f'{w:g}' for w in weights)}: need numbers >= 0, at least one above 0")
    ratios = [Fraction(weight) for weight in weights]  # exact: the same on every machine, no overflow
    total = sum(ratios)
    exact = [n_units * ratio / total for ratio in ratios]
    counts = [int(value) for value in exact]
    order = sorted(range(len(weights)), key=lambda rank: (counts[rank] - exact[rank], rank))
    for rank in order[: n_units - sum(counts)]:
        counts[rank] += 1
    return counts


def divide(spec: ModelSpec, blocks: Sequence[Block], weights: Sequence[float]) -> Partition:
    """The partition in which rank r holds about ``weights[r] / sum(weights)`` of every block.

    Raises:
        UsageError: see :func:`apportion`.
    """
    return Partition(len(weights), tuple(_divide_block(spec, block, weights) for block in blocks))


def is_whole(spec: ModelSpec, blocks: Sequence[Block], partition: Partition) -> bool:
    """Whether the ranks hold all of every block, each part once, in rank order and cut between units.

    Every partition that :func:`divide` makes is; one that came from elsewhere, e.g. with a worker's shard, may not be.
    """
    if partition.n_ranks < 1 or len(partition.shares) != len(blocks):
        return False
    return all(
        len(shares) == partition.n_ranks and _is_block_whole(spec, block, shares)
        for block, shares in zip(blocks, partition.shares, strict=True)
    )


def _is_block_whole(spec: ModelSpec, block: Block, shares: Sequence[Share]) -> bool:
    unit, total = unit_size(spec, block), unit_total(spec, block)
    place = 0
    for share in shares:
        if share.is_empty:
            continue
        span = share.of(_MEASURES[block.kind])
        cut_well = span.start == place and span.stop > place and (span.stop % unit == 0 or span.stop == total)
        if not cut_well or share != _share(spec, block.kind, span):
            return False
        place = span.stop
    return place == total


def _divide_block(spec: ModelSpec, block: Block, weights: Sequence[float]) -> tuple[Share, ...]:
    unit, total = unit_size(spec, block), unit_total(spec, block)
    shares, start = [], 0
    for count in apportion(-(-total // unit), weights):
        stop = min(start + count * unit, total)
        shares.append(_share(spec, block.kind, Span(start, stop) if stop > start else EMPTY))
        start = stop
    return tuple(shares)


def _share(spec: ModelSpec, kind: BlockKind, span: Span) -> Share:
    match kind:
        case BlockKind.ATTENTION:
            group = spec.heads_per_group
            return Share(q_heads=Span(span.start * group, span.stop * group), kv_heads=span)
        case BlockKind.FFN:
            return Share(ffn=span)
        case BlockKind.HEAD:
            return Share(rows=span)


def slot_span(slot: Slot, share: Share) -> Span:
    """The rows or columns of the slot's whole tensor that ``share`` holds; for ``COPY`` all rows."""
    if slot.measure is None:
        return Span(0, slot.tensor.n_rows)
    span = share.of(slot.measure)
    return Span(span.start * slot.step, span.stop * slot.step)
