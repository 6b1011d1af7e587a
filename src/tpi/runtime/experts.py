"""Computes the experts that rows have chosen: one after the other, each for all rows that chose it.

What a row gets of an expert does not depend on the others, nor on which of them are in memory, so neither window nor
batch changes a bit. One thread.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tpi.model.blocks import Block
from tpi.runtime.ggml.graph import Graph
from tpi.runtime.protocols import Float32Array, HeldPiece, PieceWindow
from tpi.runtime.rankmodel import HASH_VALUES
from tpi.runtime.workspace import Workspace

Ids = npt.NDArray[np.int32]


class Choices(Protocol):
    """Who may change what was chosen, before it is used: tests do."""

    def __call__(self, pass_id: int, block: int, first_row: int, ids: Ids, scores: Float32Array) -> Ids:
        """The choice to use instead of ``ids`` [n_tokens, n_used], which were chosen by ``scores`` [n_tokens,
        n_experts], for rows from ``first_row`` on of a pass."""


@dataclass(frozen=True)
class Chooser:
    """Rows ``start`` to ``stop`` of a pass, whose graph has chosen; ``imposed`` is used instead if it is there."""

    graph: Graph
    start: int
    stop: int
    imposed: Ids | None = None


class ExpertRunner:
    """The experts of all blocks of a rank."""

    def __init__(self, workspace: Workspace, window: PieceWindow, choices: Choices | None = None) -> None:
        self._workspace, self._window, self._choices = workspace, window, choices
        self._pieces: Mapping[int, dict[int, int]] = {
            block: {piece.expert: piece.index for piece in pieces if piece.expert is not None}
            for block, pieces in workspace.pieces.items()
        }

    def run(
        self,
        pass_id: int,
        block: Block,
        choosers: Sequence[Chooser],
        resident: Sequence[HeldPiece] | None,
    ) -> None:
        """Computes what the rows of ``choosers`` have chosen, and puts choice and outputs where the second halves of
        their graphs read them. ``resident``: all pieces, if nothing has to be waited for.

        Raises:
            ModelFileError, Cancelled, KernelError: from window and kernels.
        """
        assert block.experts is not None
        n_used, pieces, arrays = block.experts.n_used, self._pieces[block.index], self._workspace.arrays
        work: dict[int, list[tuple[Chooser, npt.NDArray[np.intp], npt.NDArray[np.intp]]]] = {}
        for chooser in choosers:
            chosen = self._choose(pass_id, block, chooser)
            if len(pieces) < block.experts.n:
                arrays.outputs(n_used, chooser.start, chooser.stop).fill(0)
            for expert, rows, turns in _by_expert(chosen):
                if expert in pieces:
                    work.setdefault(expert, []).append((chooser, rows, turns))
        order = sorted(work)
        indexes = [pieces[expert] for expert in order]
        for number, expert in enumerate(order):
            with self._hold(indexes, number, resident) as held:
                for chooser, rows, turns in work[expert]:
                    out = arrays.outputs(n_used, chooser.start, chooser.stop)
                    out[rows, turns] = self._compute(indexes[number], held, chooser.graph.choice()[1], rows)

    def _choose(self, pass_id: int, block: Block, chooser: Chooser) -> Ids:
        assert block.experts is not None
        ids = chooser.graph.choice()[0] if chooser.imposed is None else chooser.imposed
        if self._choices is not None and chooser.imposed is None:
            ids = self._choices(pass_id, block.index, chooser.start, ids, chooser.graph.scores())
        chosen = self._workspace.arrays.chosen(block.experts.n_used, chooser.start, chooser.stop)
        chosen[:] = ids
        return chosen

    def _hold(
        self, indexes: Sequence[int], number: int, resident: Sequence[HeldPiece] | None
    ) -> AbstractContextManager[HeldPiece]:
        if resident is not None:
            return _Resident(resident[indexes[number]])
        return self._window.hold(indexes[number], indexes[number + 1 :])

    def _compute(self, piece: int, held: HeldPiece, rows: Float32Array, chosen: npt.NDArray[np.intp]) -> Float32Array:
        graph, n_taken = self._workspace.graphs.of_expert(piece, len(chosen))
        np.take(rows, chosen, axis=0, out=self._workspace.arrays.expert_rows[: len(chosen)], mode="clip")
        graph.point_parts(held.part_addresses)
        graph.run(self._workspace.compute)
        assert n_taken >= len(chosen)
        return graph.result()[: len(chosen)]


class _Resident:
    """A piece that need not be waited for."""

    __slots__ = ("_piece",)

    def __init__(self, piece: HeldPiece) -> None:
        self._piece = piece

    def __enter__(self) -> HeldPiece:
        return self._piece

    def __exit__(self, *_: object) -> None:
        return None


def _by_expert(chosen: Ids) -> Iterator[tuple[int, npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Every expert that was chosen, in which rows, and as the how-manieth of them."""
    flat = chosen.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ordered = flat[order]
    cuts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    for group in np.split(order, cuts):
        yield int(flat[group[0]]), group // chosen.shape[1], group % chosen.shape[1]


def hash_bits(chosen: Ids) -> Float32Array:
    """The bits of a hash of what every row chose, f32 [n_tokens, HASH_VALUES], 0 or 1: their sum over ranks that chose
    alike is 0 or the number of ranks, and of others, but for one case in 2^32, is not."""
    hashes = np.array([zlib.crc32(row.tobytes()) for row in np.ascontiguousarray(chosen)], np.uint32)
    bits: npt.NDArray[np.uint32] = hashes[:, None] >> np.arange(HASH_VALUES, dtype=np.uint32)[None, :] & np.uint32(1)
    return bits.astype(np.float32)


def chose_alike(sums: Float32Array, n_ranks: int) -> bool:
    """Whether sums of :func:`hash_bits` over so many ranks, which a payload may have rounded, are of equal choices."""
    counts = np.rint(sums)
    return bool(((counts == 0) | (counts == n_ranks)).all())
