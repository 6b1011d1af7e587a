"""How a model is cut among ranks: what each holds of every kind of block, and which bytes several hold."""

from collections.abc import Iterator, Sequence
from typing import Any

from tpi.cli.figures import part, size
from tpi.model.blocks import Block, Share
from tpi.model.partition import Partition
from tpi.weights.layout import slice_extent


def cut_facts(blocks: Sequence[Block], partition: Partition) -> dict[str, Any]:
    """What ``tpi inspect --ranks`` shows: of every rank its bytes, its part of all and its ranges; of every kind of
    block the bytes that are held more than once."""
    held = [[_held_bytes(block, share) for share in partition.shares[block.index]] for block in blocks]
    by_rank = [sum(row[rank] for row in held) for rank in range(partition.n_ranks)]
    copied: dict[str, int] = {}
    for block, row in zip(blocks, held, strict=True):
        whole = sum(slot.tensor.n_bytes for slot in block.slots)
        copied[block.name] = copied.get(block.name, 0) + sum(row) - whole
    return {
        "ranks": [
            {
                "rank": rank,
                "bytes": n_bytes,
                "share": n_bytes / sum(by_rank),
                "ranges": {name: texts for name, texts in _ranges(blocks, partition, rank).items() if texts},
            }
            for rank, n_bytes in enumerate(by_rank)
        ],
        "copied": copied,
    }


def cut_lines(facts: dict[str, Any]) -> Iterator[str]:
    """The same for people; layers that are cut differently stand one after the other."""
    for rank in facts["ranks"]:
        ranges = "; ".join(f"{name} {', '.join(texts)}" for name, texts in rank["ranges"].items())
        yield f"rank {rank['rank']}  {size(rank['bytes'])} ({part(rank['share'])})  {ranges or 'nothing'}"
    copied = ", ".join(f"{name} {size(n_bytes)}" for name, n_bytes in facts["copied"].items())
    yield f"held more than once: {copied}"


def _held_bytes(block: Block, share: Share) -> int:
    if share.is_empty:
        return 0
    extents = [(slot, *slice_extent(slot, share)) for slot in block.slots]
    return sum(slot.tensor.type.row_bytes(columns.size) * rows.size for slot, rows, columns in extents)


def _ranges(blocks: Sequence[Block], partition: Partition, rank: int) -> dict[str, list[str]]:
    """For every kind of block the different ranges that the rank holds of it."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        share = partition.shares[block.index][rank]
        pairs = zip(block.measures, share.spans, strict=True)
        text = " and ".join(f"{measure.name} {s.start} to {s.stop - 1}" for measure, s in pairs if s.size)
        texts = found.setdefault(block.name, [])
        if text and text not in texts:
            texts.append(text)
    return found
