"""The beginning of texts that is never dropped: which tokens that are, the blocks that hold them, and its seat.

One thread.
"""

from collections import abc
from dataclasses import dataclass

from tpi.engine.cells import CellBlock, count_alike
from tpi.engine.seats import Seat
from tpi.errors import UsageError
from tpi.runtime.passes import BLOCK_CELLS


@dataclass
class Pinned:
    """Whole blocks of ``tokens``; none: nothing is pinned. ``blocks`` have a user more; none: nobody has computed
    them. The ``seat`` is its alone; None: all lies in cells. ``n_cells`` are not for others."""

    tokens: tuple[int, ...] = ()
    blocks: abc.Sequence[CellBlock] = ()
    seat: Seat | None = None
    n_cells: int = 0

    @staticmethod
    def of(beginning: abc.Sequence[int], n_cells: int) -> "Pinned":
        """Of a text's beginning, where there are so many cells.

        Raises:
            UsageError: that is no block, or leaves none for others.
        """
        n_pinned = len(beginning) // BLOCK_CELLS * BLOCK_CELLS
        if not n_pinned:
            raise UsageError(
                f"the chats with it have {len(beginning)} tokens in common, and blocks of {BLOCK_CELLS} are kept: make "
                "it longer"
            )
        if n_pinned > n_cells - BLOCK_CELLS:
            raise UsageError(
                f"its {n_pinned} cells leave no room for a sequence in a context of {n_cells}: shorten it by "
                f"{n_pinned + BLOCK_CELLS - n_cells} tokens or allow a longer context"
            )
        return Pinned(tuple(beginning[:n_pinned]), n_cells=n_pinned)

    def again(self, beginning: abc.Sequence[int]) -> "Pinned":
        """Of another text's beginning, in its place, as far as there are cells for it."""
        n_pinned = min(len(beginning) // BLOCK_CELLS * BLOCK_CELLS, self.n_cells)
        return Pinned(tuple(beginning[:n_pinned]), (), self.seat, self.n_cells)

    @property
    def is_awaited(self) -> bool:
        """Something is to be pinned, and nobody has computed it."""
        return bool(self.tokens) and not self.blocks

    def begins(self, text: abc.Sequence[int]) -> bool:
        """The text begins so, and goes on."""
        n_pinned = len(self.tokens)
        return len(text) > n_pinned and count_alike(self.tokens, text) == n_pinned
