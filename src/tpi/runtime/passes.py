"""A pass as every rank sees it: embeddings, positions, cells, the mask, sequences, and which rows are sampled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tpi.config import MAX_PARALLEL
from tpi.runtime.logits import ALL, Wanted
from tpi.runtime.protocols import Float32Array

BLOCK_CELLS = 32
"""Cells of a sequence lie in blocks of so many, in order."""

TILED_TOKENS = 64
"""From so many tokens on, passes are computed by the same kernels, which are faster per token than those for fewer."""

MAX_COPIES = 2 * MAX_PARALLEL


@dataclass(frozen=True)
class Run:
    """``n_tokens`` rows of a pass, one after the other, that are the next tokens of ``sequence``. What sliding windows
    and recurrences keep of a sequence goes by its number and the rows' positions."""

    sequence: int
    n_tokens: int
    is_kept: bool = False
    """The recurrent state after them is kept, so that the sequence can be cut back to them."""


@dataclass(frozen=True)
class CellCopy:
    """What lies in ``n_cells`` cells from ``source`` on is copied to those from ``target`` on."""

    source: int
    target: int
    n_cells: int


@dataclass(frozen=True)
class SequenceCopy:
    """What sliding windows and recurrences keep of ``source`` after its first ``n_tokens`` is copied to ``target``, of
    which everything else is forgotten."""

    source: int
    target: int
    n_tokens: int


@dataclass(frozen=True)
class Copies:
    """Made before anything is computed, one after the other; those of a pass that was stopped come again with the next
    one, before others. Of each kind at most ``MAX_COPIES``."""

    cells: Sequence[CellCopy] = ()
    sequences: Sequence[SequenceCopy] = ()

    def __bool__(self) -> bool:
        """There are some."""
        return bool(self.cells or self.sequences)


@dataclass(frozen=True)
class Pass:
    """One trip of n tokens through all blocks.

    ``embeddings`` f32 [n_tokens, n_embd and what is looked up], None on ranks that need none; ``positions`` i32 and
    ``cells`` i64 [n_tokens]; ``visible`` bool [n_tokens, n_seen], true where a token may attend to a cell (its own
    included); ``sampled`` i32 [n_sampled], rows whose logits are wanted, maybe none. What lies in cells from ``n_seen``
    on is forgotten: no later pass sees it. ``runs`` are the sequences of the rows; none: all rows are the next tokens
    of sequence 0.
    """

    pass_id: int
    embeddings: Float32Array | None
    positions: npt.NDArray[np.int32]
    cells: npt.NDArray[np.int64]
    visible: npt.NDArray[np.bool_]
    sampled: npt.NDArray[np.int32]
    wanted: Wanted = ALL
    """What of the sampled rows' logits the master needs."""
    runs: tuple[Run, ...] = ()
    copies: Copies = Copies()

    @property
    def n_tokens(self) -> int:
        return int(self.positions.shape[0])

    @property
    def n_seen(self) -> int:
        """Cells that the mask covers, from cell 0."""
        return int(self.visible.shape[1])

    @property
    def all_runs(self) -> tuple[Run, ...]:
        """The runs of all rows."""
        return self.runs or (Run(0, self.n_tokens),)
