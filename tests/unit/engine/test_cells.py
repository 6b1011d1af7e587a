"""Blocks of cells, where a text is very long."""

import sys

from tpi.engine.cells import CellBlock, CellPool
from tpi.runtime.passes import BLOCK_CELLS


def test_a_long_text_can_be_forgotten() -> None:
    """It has more blocks than functions of Python may call each other."""
    n_blocks = 2 * sys.getrecursionlimit()
    pool = CellPool(n_blocks * BLOCK_CELLS)
    block: CellBlock | None = None
    blocks = list[CellBlock]()
    for _ in range(n_blocks):
        block = pool.take(block)
        assert block is not None
        blocks.append(block)
    assert pool.n_available == 0
    pool.leave(blocks[0])
    assert pool.n_available == 0, "those behind it are used"
    for block in blocks[1:]:
        pool.leave(block)
    assert pool.n_available == n_blocks * BLOCK_CELLS
    pool.drop_unused()
    assert pool.n_available == n_blocks * BLOCK_CELLS and pool.stop == 0
