"""How a model is cut among ranks: what each holds of every kind of block, and which bytes several hold."""

from collections.abc import Iterator, Sequence
from typing import Any

from tpi.cli.figures import part, size
from tpi.model.blocks import Block, Slot
from tpi.model.partition import Partition
from tpi.model.spans import Share, Span, total_size


def cut_facts(blocks: Sequence[Block], partition: Partition) -> dict[str, Any]:
    """What ``tpi inspect --ranks`` shows: of every rank its bytes, its part of all and its ranges; of every kind of
    block the bytes that are held more than once."""
    held = [[_held_bytes(block, share) for share in partition.shares[block.index]] for block in blocks]
    by_rank = [sum(row[rank] for row in held) for rank in range(partition.n_ranks)]
    copied: dict[str, int] = {}
    for block, row in zip(blocks, held, strict=True):
        everything = Share(tuple(Span(0, measure.total) for measure in block.measures))
        copied[block.name] = copied.get(block.name, 0) + sum(row) - _held_bytes(block, everything)
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
    n_bytes = sum(_slot_bytes(slot, share) for slot in block.slots)
    for columns, experts in _expert_runs(block, share):
        of_one = sum(_slot_bytes(slot, Share((columns,))) for slot in _slots_of_experts(block))
        n_bytes += of_one * experts.size
    return n_bytes


def _slot_bytes(slot: Slot, share: Share) -> int:
    extent = slot.extent(share)
    return slot.tensor.type.row_bytes(total_size(extent.columns)) * total_size(extent.rows)


def _slots_of_experts(block: Block) -> tuple[Slot, ...]:
    """Those of one; all are of equal size."""
    return block.experts.slots_of(0) if block.experts is not None else ()


def _expert_runs(block: Block, share: Share) -> list[tuple[Span, Span]]:
    """The columns that a rank has of experts, and which experts, where neighbours have the same."""
    runs: list[tuple[Span, Span]] = []
    for expert in range(block.experts.n if block.experts is not None else 0):
        assert block.experts is not None
        columns = block.experts.columns(share, expert)
        if runs and runs[-1] == (columns, Span(runs[-1][1].start, expert)):
            runs[-1] = columns, Span(runs[-1][1].start, expert + 1)
        elif columns.size:
            runs.append((columns, Span(expert, expert + 1)))
    return runs


def _ranges(blocks: Sequence[Block], partition: Partition, rank: int) -> dict[str, list[str]]:
    """For every kind of block the different ranges that the rank holds of it."""
    found: dict[str, list[str]] = {}
    for block in blocks:
        text = _range(block, partition.shares[block.index][rank])
        texts = found.setdefault(block.name, [])
        if text and text not in texts:
            texts.append(text)
    return found


def _range(block: Block, share: Share) -> str:
    if block.is_own:
        return "" if share.is_empty else "all"
    texts = []
    for number, (measure, span) in enumerate(zip(block.measures, share.spans, strict=True)):
        if block.experts is not None and block.experts.measure == number:
            texts += [
                f"columns {_numbers(columns)} of experts {_numbers(experts)}"
                for columns, experts in _expert_runs(block, share)
            ]
        elif span.size:
            texts.append(f"{measure.name} {_numbers(span)}")
    return " and ".join(texts)


def _numbers(span: Span) -> str:
    return f"{span.start} to {span.stop - 1}" if span.size > 1 else str(span.start)
