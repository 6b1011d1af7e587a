"""Which cells the rows of a pass look at, by window: all that any sequence has, behind a mask, or each sequence's own.

A kernel that finds a cell masked goes on to the next, so that cells of others cost little, until there are many. A
sequence's own are copied behind one another by blocks, in the order of their positions, wherever they lie. Owns masks,
lists of blocks, and where copies go; their addresses stay. One thread.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tpi.model.states import FULL
from tpi.runtime.folding import fold_of, masked_values, rows_of
from tpi.runtime.ggml.inputs import Group, Seen, Sight
from tpi.runtime.passes import BLOCK_CELLS, TILED_TOKENS, CellCopy, Pass, Run
from tpi.runtime.rankmodel import N_KV_STEP, RankModel, RankSettings

_MINUS_INFINITY = np.uint16(0xFC00)
"""In 16 bits."""
_OWN_STEP = 2 * BLOCK_CELLS
"""The number of cells of a sequence that a graph is made for is rounded up to this."""
_CHECK_BYTES = 20
"""To copy so many bytes takes as long as to find one cell masked, for one row and head (a constant of kernels)."""
_MOST_GATHERED_BYTES = 4 << 20
"""Of keys and values of one block that lie behind one another; sequences that have more look at all cells."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Look:
    """What the rows of a run see: ``seen`` bool [n_rows, n] of the cells from number ``first`` on, which have
    ``positions`` [n]."""

    first: int
    seen: Bools
    positions: npt.NDArray[np.int32]


@dataclass(frozen=True)
class _Own:
    """A run's own cells: numbers of blocks, ascending by position, and which of their cells every row sees."""

    blocks: npt.NDArray[np.int64]
    seen: Bools

    @property
    def n_kv(self) -> int:
        n: int = self.seen.shape[1]
        return -(-n // _OWN_STEP) * _OWN_STEP


class Sights:
    """Of one rank."""

    def __init__(self, model: RankModel, settings: RankSettings) -> None:
        self._settings, self._model, self._is_reproducible = settings, model, settings.is_reproducible
        n, n_runs = settings.max_tokens, min(settings.max_tokens, settings.n_sequences)
        cells = {window: settings.cells_of(window) for window in model.windows}
        self._looked = {window: model.attention(window) for window in model.windows}
        self._most_own = {window: self._find_most_own(window) for window in model.windows}
        self.cells = {window: np.zeros(n, np.int64) for window in (FULL, *model.windows)}
        self.masks = {
            window: np.zeros(masked_values(self._looked[window], settings, cells[window]), np.uint16)
            for window in model.windows
        }
        n_blocks = {window: n_runs * cells[window] // BLOCK_CELLS if most else 0 for window, most in self._own_items()}
        self.blocks = {window: np.zeros(n_blocks[window], np.int32) for window in model.windows}
        self._positions = np.zeros(settings.n_cells, np.int32)
        kind = settings.kv_type
        sizes = [
            [most * kind.row_bytes(width) for width in (attention.key_width, attention.value_width)]
            for window, most in self._own_items()
            for attention in self._looked[window]
        ]
        self.gathered = tuple(np.zeros(max((size[part] for size in sizes), default=0), np.uint8) for part in (0, 1))
        widths = [entry.n_heads * entry.value_dim for found in self._looked.values() for entry in found]
        self.attended = np.zeros(
            self._most_rows * max(widths, default=0) if any(self._most_own.values()) else 0, np.float32
        )

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays when they are used to the full."""
        arrays: list[npt.NDArray[Any]] = [*self.masks.values(), *self.blocks.values(), *self.gathered, self.attended]
        return sum(array.nbytes for array in arrays)

    def copy(self, cells: CellCopy) -> None:
        """What lies in some cells is copied to others."""
        positions = self._positions[cells.source : cells.source + cells.n_cells]
        self._positions[cells.target : cells.target + cells.n_cells] = positions

    def place(self, first: int, position: int, n_cells: int) -> None:
        """Cells from ``first`` on hold the tokens from ``position`` on."""
        self._positions[first : first + n_cells] = np.arange(position, position + n_cells)

    def load(self, work: Pass) -> Seen:
        """Says where rows are written and what they see; returns what attention looks at."""
        self.cells[FULL][: work.n_tokens] = work.cells
        self._positions[work.cells] = work.positions
        return tuple((window, self._load(work, window)) for window in self._model.windows)

    def _load(self, work: Pass, window: int) -> Sight:
        looks = self._full(work) if window == FULL else self._of_window(work, window)
        n_kv = self._union(work, window)
        owns = self._find_own(window, looks, n_kv)
        if owns:
            return Sight(groups=self._load_own(window, owns))
        fold = self._fold(window, 0, 1, work.n_tokens, n_kv)
        mask = self._mask(window, 0, (1, rows_of(work.n_tokens, fold), n_kv))
        mask[:] = _MINUS_INFINITY
        rows, start = _folded(mask, work.n_tokens, fold)[0], 0
        for look in looks:
            n_rows, n = look.seen.shape[0], min(look.seen.shape[1], n_kv - look.first)
            part = rows[start : start + n_rows, :, look.first : look.first + n]
            np.multiply(~look.seen[:, None, :n], _MINUS_INFINITY, out=part)
            start += n_rows
        return Sight(n_kv, fold=fold)

    def _mask(self, window: int, first: int, extents: tuple[int, int, int]) -> npt.NDArray[np.uint16]:
        return self.masks[window][first : first + math.prod(extents)].reshape(extents)

    def _fold(self, window: int, first: int, n_sequences: int, n_rows: int, n_kv: int) -> int:
        """Of rows whose mask begins at value ``first``, if there is room for it."""
        fold = fold_of(self._looked[window], self._settings, n_sequences, n_rows)
        n_values = n_sequences * rows_of(n_rows, fold) * n_kv
        return fold if first + n_values <= len(self.masks[window]) else 1

    def _union(self, work: Pass, window: int) -> int:
        """How many cells from the first on hold all that is seen."""
        settings, runs = self._settings, work.all_runs
        n_cells = settings.cells_of(window)
        if window == FULL:
            n_seen = work.n_seen
        elif len(runs) == 1 and runs[0].sequence == 0:
            n_seen = min(int(work.positions[-1]) + 1, settings.ring_cells(window))
        else:
            n_seen = settings.ring_cells(window) * (1 + max(run.sequence for run in runs))
        return min(n_cells, -(-n_seen // N_KV_STEP) * N_KV_STEP)

    def _full(self, work: Pass) -> list[_Look]:
        positions = self._positions[: work.n_seen]
        return [
            _Look(0, work.visible[start : start + run.n_tokens], positions) for start, run in starts_of(work.all_runs)
        ]

    def _of_window(self, work: Pass, window: int) -> list[_Look]:
        """A sequence's token at position p lies in cell p modulo the window's cells, of those that the sequence has."""
        n_ring, found = self._settings.ring_cells(window), list[_Look]()
        for start, run in starts_of(work.all_runs):
            rows = slice(start, start + run.n_tokens)
            first, positions = run.sequence * n_ring, work.positions[rows]
            self.cells[window][rows] = first + positions % n_ring
            last = int(positions[-1])
            held = last - (last - np.arange(n_ring, dtype=np.int32)) % n_ring  # the position in every cell
            ages = positions[:, None] - held[None, :]
            found.append(_Look(first, (ages >= 0) & (ages < window) & (held >= 0)[None, :], held))
        return found

    def _find_own(self, window: int, looks: Sequence[_Look], n_kv: int) -> list[_Own]:
        """Every run's own cells, if it is worth while to look at those alone; none otherwise."""
        most, n_rows = self._most_own[window], sum(len(look.seen) for look in looks)
        if not most or (len(looks) == 1 and not self._is_reproducible) or n_rows > self._most_rows:
            return []
        owns = [_own_of(look) for look in looks]
        if self._is_reproducible:
            return owns
        if max(own.n_kv for own in owns) > most:
            return []
        n_bytes = n_checks = 0
        for attention in self._looked[window]:
            kind = self._settings.kv_type
            n_bytes += kind.row_bytes(attention.key_width) + kind.row_bytes(attention.value_width)
            n_checks += attention.n_heads
        own_cost = sum(own.n_kv * (len(own.seen) * n_checks + n_bytes / _CHECK_BYTES) for own in owns)
        return owns if own_cost < n_kv * n_rows * n_checks else []

    def _load_own(self, window: int, owns: Sequence[_Own]) -> tuple[Group, ...]:
        groups, first_value, first_block, n_left = list[Group](), 0, 0, sum(len(own.seen) for own in owns)
        for some in self._group(window, owns):
            n_rows, n_kv = len(some[0].seen), max(own.n_kv for own in some)
            n_kv = min(n_kv, self._cells_of_one(window))
            n_left -= len(some) * n_rows
            fold = self._fold(window, first_value + n_left * self._cells_of_one(window), len(some), n_rows, n_kv)
            group = Group(len(some), n_rows, n_kv, fold)
            n_blocks, mask = len(some) * n_kv // BLOCK_CELLS, self._mask(window, first_value, group.mask_values)
            blocks = self.blocks[window][first_block : first_block + n_blocks].reshape(len(some), -1)
            mask[:], blocks[:] = _MINUS_INFINITY, 0
            rows = _folded(mask, n_rows, fold)
            for number, own in enumerate(some):
                np.multiply(~own.seen[:, None], _MINUS_INFINITY, out=rows[number, :, :, : own.seen.shape[1]])
                blocks[number, : len(own.blocks)] = own.blocks
            groups.append(group)
            first_value, first_block = first_value + mask.size, first_block + n_blocks
        return tuple(groups)

    def _group(self, window: int, owns: Sequence[_Own]) -> list[list[_Own]]:
        """Neighbours with equally many rows, as many as there is room for at once."""
        found = list[list[_Own]]()
        for own in owns:
            last = [*found[-1], own] if found else []
            is_alike = bool(last) and len(last[0].seen) == len(own.seen)
            if is_alike and len(last) * max(one.n_kv for one in last) <= self._most_own[window]:
                found[-1].append(own)
            else:
                found.append([own])
        return found

    @property
    def _most_rows(self) -> int:
        """Passes of more are computed by kernels that leave out whole tiles of masked cells."""
        n_tokens = self._settings.max_tokens
        return n_tokens if self._is_reproducible else min(n_tokens, TILED_TOKENS - 1)

    def _find_most_own(self, window: int) -> int:
        """Cells that can be gathered at once; 0: none."""
        settings, kind = self._settings, self._settings.kv_type
        n_cells = settings.cells_of(window)
        if self._is_reproducible:
            assert n_cells % BLOCK_CELLS == 0, "whole blocks"
            return self._cells_of_one(window)
        if settings.n_sequences == 1 or n_cells % BLOCK_CELLS:
            return 0
        cell_bytes = max(
            kind.row_bytes(entry.key_width) + kind.row_bytes(entry.value_width) for entry in self._looked[window]
        )
        return min(n_cells, _MOST_GATHERED_BYTES // cell_bytes)

    def _cells_of_one(self, window: int) -> int:
        """That a sequence can have."""
        return self._settings.n_cells if window == FULL else self._settings.ring_cells(window)

    def _own_items(self) -> Sequence[tuple[int, int]]:
        return [(window, self._most_own[window]) for window in self._model.windows]


def _folded(mask: npt.NDArray[np.uint16], n_rows: int, fold: int) -> npt.NDArray[np.uint16]:
    """A mask as [n_sequences, n_rows, fold, n_kv]; what it has more is padding."""
    n_sequences, _, n_kv = mask.shape
    return mask[:, : n_rows * fold].reshape(n_sequences, n_rows, fold, n_kv)


def _own_of(look: _Look) -> _Own:
    n_rows, n = look.seen.shape
    seen, positions = look.seen, look.positions
    if n % BLOCK_CELLS:
        seen = np.pad(seen, ((0, 0), (0, -n % BLOCK_CELLS)))
        positions = np.pad(positions, (0, -n % BLOCK_CELLS))
    of_blocks = (seen[0] if n_rows == 1 else seen.any(axis=0)).reshape(-1, BLOCK_CELLS)
    blocks = np.flatnonzero(of_blocks.any(axis=1))
    firsts = positions[blocks * BLOCK_CELLS + of_blocks[blocks].argmax(axis=1)]
    blocks = blocks[np.argsort(firsts, kind="stable")]
    cells = (blocks[:, None] * BLOCK_CELLS + np.arange(BLOCK_CELLS)).ravel()
    return _Own(blocks + look.first // BLOCK_CELLS, seen[:, cells])


def starts_of(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    """Every run with its first row."""
    found, start = [], 0
    for run in runs:
        found.append((start, run))
        start += run.n_tokens
    return found
