"""The blocks that concern a rank, in order, each with what follows it. Pure data."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpi.model.blocks import Block
from tpi.model.flow import Flow


@dataclass(frozen=True)
class Turn:
    """A block that concerns this rank, and what follows it."""

    block: Block
    flow: Flow
    is_held: bool
    """This rank holds a part of it."""
    is_received: bool
    """This rank needs its sum."""


def turns_of(blocks: Sequence[Block], flows: Sequence[Flow], rank: int) -> list[Turn]:
    """The turns of ``rank``."""
    turns = [
        Turn(block, flow, rank in flow.contributors, rank in flow.receivers)
        for block, flow in zip(blocks, flows, strict=True)
    ]
    return [turn for turn in turns if turn.is_held or turn.is_received]


def first_per_row(blocks: Sequence[Block]) -> int:
    """Index of the block from which on no row needs another, so that only sampled rows are computed, and summed, and
    none if none is sampled."""
    return 1 + max((block.index for block in blocks if block.state is not None), default=-1)
