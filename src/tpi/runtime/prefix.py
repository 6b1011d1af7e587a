"""What a rank keeps of the beginning of a text, as memory to be written out or read in: keys and values of its cells,
rings and recurrent states, in one order on every start. Runs nothing; the thread that runs passes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tpi.model.states import FULL, KvState
from tpi.runtime.passes import BLOCK_CELLS
from tpi.runtime.recurrent import StateMark
from tpi.runtime.workspace import Workspace


@dataclass(frozen=True)
class Prefix:
    """The first ``n_tokens`` of a text: ``cells`` are the first ones of the blocks that hold them, in order; what is
    kept beside cells is that of ``sequence``, with the states ``marks``."""

    sequence: int
    n_tokens: int
    cells: Sequence[int]
    marks: Sequence[StateMark] = ()


def find_slots(workspace: Workspace, prefix: Prefix) -> list[int]:
    """Where the prefix's states are.

    Raises:
        ProtocolError: one of them is not there.
    """
    slots = workspace.states.slots
    return [slots.kept(prefix.sequence, mark.n_tokens) for mark in prefix.marks] if workspace.states else []


def place(workspace: Workspace, prefix: Prefix) -> list[int]:
    """From now on cells, and the slots that are returned, are those of the prefix, whose memory is to be filled.

    Raises:
        ProtocolError: there are too many states.
    """
    for number, first in enumerate(prefix.cells):
        workspace.arrays.sights.place(first, number * BLOCK_CELLS, BLOCK_CELLS)
    return workspace.states.slots.place(prefix.sequence, prefix.marks) if workspace.states else []


def views(workspace: Workspace, prefix: Prefix, slots: Sequence[int], n_present: int = 0) -> Iterator[memoryview]:
    """All of it, run by run; the memory stays the workspace's. In place of cells of the first ``n_present`` tokens,
    whole blocks, there is memory of the same size that nobody uses."""
    for block in workspace.model.blocks:
        state = block.state
        if block.index not in workspace.cache or not isinstance(state, KvState):
            continue
        if state.window != FULL:
            n_ring = workspace.settings.ring_cells(state.window)
            yield from workspace.cache.views(block.index, prefix.sequence * n_ring, n_ring)
            continue
        for number, first in enumerate(prefix.cells):
            position = number * BLOCK_CELLS
            found = workspace.cache.views(block.index, first, min(BLOCK_CELLS, prefix.n_tokens - position))
            yield from found if position >= n_present else (memoryview(bytearray(len(view))) for view in found)
    for slot in slots:
        yield from workspace.states.views(slot)
