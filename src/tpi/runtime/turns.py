"""The blocks that concern a rank, in order, each with what follows it. Pure data."""

from collections.abc import Sequence
from dataclasses import dataclass

from tpi.model.blocks import Block
from tpi.model.flow import Flow
from tpi.runtime.rankmodel import RankModel


@dataclass(frozen=True)
class Turn:
    """A block that concerns this rank, and what follows it."""

    block: Block
    flow: Flow
    is_held: bool
    """This rank holds a part of it."""
    is_received: bool
    """This rank needs its sum."""
    width: int
    """Values of a row of the sum."""
    says_choice: bool
    """With the sum ranks say which experts they have chosen."""
    hands_over: bool
    """This rank adds the residual stream to what it contributes, so that it is handed over."""


def turns_of(model: RankModel) -> list[Turn]:
    """The turns of the model's rank."""
    found = []
    for block, flow in zip(model.blocks, model.flows, strict=True):
        is_held, is_received = model.rank in flow.contributors, model.rank in flow.receivers
        width = model.sum_width(block)
        if is_held or is_received:
            hands_over = flow.is_handed_over and not block.is_own and model.rank == flow.contributors[0]
            says_choice = block.experts is not None and width > block.n_vectors * model.spec.n_embd
            found.append(Turn(block, flow, is_held, is_received, width, says_choice, hands_over))
    return found


def first_per_row(blocks: Sequence[Block]) -> int:
    """Index of the block from which on no row needs another, so that only sampled rows are computed, and summed, and
    none if none is sampled."""
    first = 1 + max((block.index for block in blocks if block.looks_back), default=-1)
    while blocks[first].is_own or blocks[first - 1].leaves is not None:  # it needs what the one before has given
        first += 1
    return first
