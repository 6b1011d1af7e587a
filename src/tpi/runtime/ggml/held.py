"""A block, or an expert, as a rank holds it: what its graph is made from. Pure data."""

from dataclasses import dataclass
from math import lcm
from typing import Any

from tpi.gguf.types import F16, TensorType
from tpi.model.blocks import Block, Experts, Graph, Leavings
from tpi.model.spans import Share, Span
from tpi.model.states import KvState, RecurrentState, State
from tpi.runtime.ggml.repack import Repacker
from tpi.weights.layout import Piece

Structure = tuple[Any, ...]
"""What two blocks must have in common to share graphs."""


@dataclass(frozen=True)
class GraphSettings:
    """What all graphs of a rank have in common: the cells of its KV cache for every window, and their type; and whose
    order the weights have (None: the model's own)."""

    n_cells: tuple[tuple[int, int], ...]
    kv_type: TensorType = F16
    repacker: Repacker | None = None
    is_reproducible: bool = False
    """Every row of a product is computed as if it were alone."""
    n_positions: int = 0
    """Tokens that a sequence can have."""

    def cells_of(self, window: int) -> int:
        """Cells of the caches of blocks with this window."""
        return dict(self.n_cells)[window]


@dataclass(frozen=True)
class Held:
    """What a rank holds of a block, ``pieces`` in the order of the graph's steps, its experts' not among them."""

    graph: Graph
    share: Share
    pieces: tuple[Piece, ...]
    state: State | None = None
    """What the block keeps, or another that it looks at."""
    experts: Experts | None = None
    is_expert: bool = False
    """It is one expert: its rows are those that chose it."""
    is_own: bool = False
    is_kept: bool = False
    summed_width: int = 0
    """Of the rows of the sum that it follows, if it does."""
    leaves: Leavings | None = None
    left: tuple[int, ...] = ()
    """Values of the parts that the block before has left here."""

    @property
    def has_state(self) -> bool:
        """A block may keep something, and this rank hold no part that does."""
        return self.state is not None and self.share.first.size > 0

    @property
    def is_first(self) -> bool:
        """It follows a sum, and this is the first rank's part of it."""
        return self.summed_width > 0 and not self.share.first.start

    @property
    def window(self) -> int | None:
        """Of its attention, if it attends."""
        return self.state.window if isinstance(self.state, KvState) and self.has_state else None

    @property
    def is_recurrent(self) -> bool:
        return isinstance(self.state, RecurrentState) and self.has_state

    @property
    def _head_runs(self) -> list[tuple[Span, Span]]:
        return self.state.runs(self.share) if isinstance(self.state, KvState) and self.has_state else []

    @property
    def n_head_runs(self) -> int:
        """See ``KvState.runs``."""
        return len(self._head_runs)

    @property
    def structure(self) -> Structure:
        """How it is computed, what it keeps, and the roles, types and sizes of all parts."""
        runs = tuple(self._head_runs)
        parts = (
            tuple((part.role, part.type_id, part.n_columns, part.n_rows) for part in piece.parts)
            for piece in self.pieces
        )
        size, start = self.share.first.size, 0
        # How heads are paired, or shared with other ranks, goes by where the part begins.
        if isinstance(self.state, RecurrentState):
            start = self.share.first.start % self.state.group
        elif self.leaves is not None:
            start = self.share.first.start % lcm(*(group for _, group in self.leaves.parts))
        what = self.graph, self.state, size, start, runs, self.is_expert, self.is_first
        return *what, self.summed_width, self.left, *parts


def held_block(
    block: Block,
    state: State | None,
    share: Share,
    pieces: tuple[Piece, ...],
    summed_width: int,
    left: tuple[int, ...],
) -> Held:
    """What a rank with ``share`` and ``pieces`` holds of a block; ``state`` is its own or the one that it looks at,
    ``summed_width`` that of the sum before, if the block follows one, and ``left`` what the block before has left."""
    return Held(
        block.graph,
        share,
        tuple(piece for piece in pieces if piece.expert is None),
        state,
        block.experts,
        is_own=block.is_own,
        is_kept=block.is_kept,
        summed_width=summed_width,
        leaves=block.leaves,
        left=left,
    )


def held_expert(experts: Experts, share: Share, piece: Piece) -> Held:
    """One expert of a block."""
    assert piece.expert is not None
    return Held(experts.graph, Share((experts.columns(share, piece.expert),)), (piece,), is_expert=True)
