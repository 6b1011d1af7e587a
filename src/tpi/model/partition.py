"""THE partition rule: which part of every block each rank holds. Slicer, runtime and planner use this module alone.

A rank's part of a block is a range of everything that the block is cut in (``Block.measures``), of whole units; which
rows and columns of which tensors that is, the block's slots say. Pure arithmetic, no I/O.
"""

from collections.abc import Sequence
from fractions import Fraction

import msgspec

from tpi.errors import UsageError
from tpi.model.blocks import Block, Measure
from tpi.model.spans import EMPTY, Share, Span

_ONE_COPY, _NO_COPY = Share((Span(0, 1),)), Share((EMPTY,))


class Partition(msgspec.Struct, frozen=True):
    """``shares[block][rank]``: what each rank holds of each block."""

    n_ranks: int
    shares: tuple[tuple[Share, ...], ...]

    def contributors(self, block: int) -> tuple[int, ...]:
        """The ranks that hold some of the block, ascending."""
        return tuple(rank for rank, share in enumerate(self.shares[block]) if not share.is_empty)


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


def divide(blocks: Sequence[Block], weights: Sequence[float]) -> Partition:
    """The partition in which rank r holds about ``weights[r] / sum(weights)`` of every block.

    Raises:
        UsageError: see :func:`apportion`.
    """
    shares = [() if block.is_own else _divide_block(block, weights) for block in blocks]
    return Partition(len(weights), complete(blocks, len(weights), shares))


def complete(
    blocks: Sequence[Block], n_ranks: int, shares: Sequence[tuple[Share, ...]]
) -> tuple[tuple[Share, ...], ...]:
    """``shares`` of all blocks, where those of blocks that are everybody's own follow from their layers'."""
    members: dict[int, set[int]] = {}
    for block, row in zip(blocks, shares, strict=True):
        if not block.is_own:
            found = members.setdefault(block.layer, set())
            found.update(rank for rank, share in enumerate(row) if not share.is_empty)
    return tuple(
        tuple(_ONE_COPY if rank in members.get(block.layer, ()) else _NO_COPY for rank in range(n_ranks))
        if block.is_own
        else row
        for block, row in zip(blocks, shares, strict=True)
    )


def is_whole(blocks: Sequence[Block], partition: Partition) -> bool:
    """Whether the ranks hold all of every block, each part once, in rank order and cut between units.

    Every partition that :func:`divide` makes is; one that came from elsewhere, e.g. with a worker's shard, may not be.
    """
    n_ranks = partition.n_ranks
    if n_ranks < 1 or len(partition.shares) != len(blocks) or any(len(row) != n_ranks for row in partition.shares):
        return False
    return partition.shares == complete(blocks, n_ranks, partition.shares) and all(
        _is_block_whole(block, shares) and _is_where_it_must_be(block, partition)
        for block, shares in zip(blocks, partition.shares, strict=True)
    )


def _is_where_it_must_be(block: Block, partition: Partition) -> bool:
    """Where the state is that it looks at, and the block that goes on where it stops."""
    others = () if block.reads_state_of is None else (block.reads_state_of,)
    if block.leaves is not None:
        others = (*others, block.index + 1)
    return all(partition.shares[block.index] == partition.shares[other] for other in others)


def _is_block_whole(block: Block, shares: Sequence[Share]) -> bool:
    return block.is_own or (
        all(len(share.spans) == len(block.measures) for share in shares)
        and all(
            _is_measure_whole(measure, [share.spans[number] for share in shares])
            for number, measure in enumerate(block.measures)
        )
    )


def _is_measure_whole(measure: Measure, spans: Sequence[Span]) -> bool:
    place = 0
    for span in spans:
        if span == EMPTY:
            continue
        is_cut_well = span.stop % measure.fine == 0 or span.stop == measure.total
        if span.start != place or span.stop <= place or not is_cut_well:
            return False
        place = span.stop
    return place == measure.total


def _divide_block(block: Block, weights: Sequence[float]) -> tuple[Share, ...]:
    spans = [_divide_measure(measure, weights) for measure in block.measures]
    return tuple(Share(row) for row in zip(*spans, strict=True))


def _divide_measure(measure: Measure, weights: Sequence[float]) -> list[Span]:
    unit = measure.unit_for(sum(weight > 0 for weight in weights))
    spans, start = [], 0
    for count in apportion(-(-measure.total // unit), weights):
        stop = min(start + count * unit, measure.total)
        spans.append(Span(start, stop) if stop > start else EMPTY)
        start = stop
    return spans
