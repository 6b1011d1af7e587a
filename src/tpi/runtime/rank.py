"""Runs passes on one rank: block after block, hold, compute, allreduce, add. The loop to read first.

Owns no memory of its own (``workspace``, window). One thread runs passes; it is the one that calls the allreduce.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from tpi.errors import NumericError
from tpi.model.spec import Block, BlockKind
from tpi.runtime.ggml.builder import BatchShape
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Allreduce, Float32Array, PieceWindow, SumStep
from tpi.runtime.workspace import Workspace

_ROOM_FOR_PASS_GRAPH = 16
"""Where the longest pass has so many tokens, the blocks' intermediates leave room for a whole pass of one."""


@dataclass
class RankTimes:
    """Seconds since the start, by what the pass thread did; and passes run."""

    compute_s: float = 0.0
    hold_s: float = 0.0
    allreduce_s: float = 0.0
    n_passes: int = 0


def first_after_attention(blocks: Sequence[Block]) -> int:
    """Index of the block from which on only sampled rows are computed, and summed, and none if none is sampled."""
    return 1 + max((block.index for block in blocks if block.kind is BlockKind.ATTENTION), default=-1)


class Rank:
    """One rank's slice of the model, running passes. The parts belong to the caller and outlive this."""

    def __init__(self, workspace: Workspace, window: PieceWindow, allreduce: Allreduce) -> None:
        self._workspace, self._window, self._allreduce = workspace, window, allreduce
        self._model = workspace.model
        blocks, partition = workspace.model.blocks, workspace.model.partition
        self._contributors = [partition.contributors(block.index) for block in blocks]
        self._first_per_row = first_after_attention(blocks)
        self._is_alone = partition.n_ranks == 1 and workspace.settings.max_tokens >= _ROOM_FOR_PASS_GRAPH
        self._resident: dict[int, tuple[int, ...]] | None = None
        self.times = RankTimes()

    def run(self, work: Pass) -> Float32Array | None:
        """Runs one pass; returns this rank's logits f32 [n_sampled, rows], None where it has no head rows or none
        are sampled. The result is valid until the next pass.

        Raises:
            NumericError: a contribution or the logits are not finite.
            KernelError, ModelFileError, LinkError, ProtocolError: from kernels, disk and links.
        """
        n, n_kv = work.n_tokens, self._workspace.load(work)
        self._resident = self._resident or self._find_resident()
        if self._resident is not None and self._is_alone and work.n_tokens == 1 == len(work.sampled):
            return self._run_token(n_kv, self._resident)
        logits = None
        for block in self._model.blocks:
            if block.index == self._first_per_row:
                n = self._keep_sampled(work)
                if not n:
                    break
            partial = self._run_block(block, BatchShape(n, n_kv if block.kind is BlockKind.ATTENTION else 0))
            if block.kind is BlockKind.HEAD:
                logits = self._check(partial)
            else:
                self._add(work.pass_id, block, partial, n)
        self.times.n_passes += 1
        return logits

    def _run_token(self, n_kv: int, resident: dict[int, tuple[int, ...]]) -> Float32Array | None:
        """One token where nothing has to be waited for, neither disk nor other ranks."""
        started = perf_counter()
        logits = self._workspace.pass_graph(n_kv, resident).run(self._workspace.compute)
        self.times.compute_s += perf_counter() - started
        self.times.n_passes += 1
        return self._check(logits)

    def zero_cells(self, first: int, stop: int) -> None:
        """Clears the KV cells of an aborted pass."""
        self._workspace.cache.zero(first, stop)

    def _keep_sampled(self, work: Pass) -> int:
        """After the last attention no row needs another: only those that are sampled go on. Returns their number."""
        n_sampled = len(work.sampled)
        if n_sampled != work.n_tokens or n_sampled > 1:
            self._workspace.residual[:n_sampled] = self._workspace.residual[work.sampled]
        return n_sampled

    def _add(self, pass_id: int, block: Block, partial: Float32Array | None, n: int) -> None:
        """Adds the sum over all ranks to the residual stream."""
        started = perf_counter()
        residual, total = self._workspace.residual[:n], self._workspace.total[:n]
        self._allreduce.sum(SumStep(pass_id, block.index, self._contributors[block.index]), partial, total)
        np.add(residual, total, out=residual)
        self.times.allreduce_s += perf_counter() - started

    def _check(self, logits: Float32Array | None) -> Float32Array | None:
        if logits is not None and not np.isfinite(logits).all():
            raise NumericError(f"rank {self._model.rank} computed logits that are not finite: is its shard damaged?")
        return logits

    def _find_resident(self) -> dict[int, tuple[int, ...]] | None:
        """The addresses of every block's parts, once all pieces are in memory for good."""
        held = self._window.try_resident()
        if held is None:
            return None
        return {
            block: tuple(address for piece in pieces for address in held[piece.index].part_addresses)
            for block, pieces in self._workspace.pieces.items()
        }

    def _run_block(self, block: Block, shape: BatchShape) -> Float32Array | None:
        pieces = self._workspace.pieces.get(block.index)
        if pieces is None:
            return None
        graph, compute = self._workspace.graph(block, shape), self._workspace.compute
        if block.kind is BlockKind.ATTENTION:
            graph.point_cache(*self._workspace.cache.addresses(block.layer))
        started = perf_counter()
        if self._resident is not None:
            graph.run_whole(compute, self._resident[block.index])
            self.times.compute_s += perf_counter() - started
            return graph.result()
        for number, piece in enumerate(pieces):
            with self._window.hold(piece.index) as held:
                ready = perf_counter()
                graph.run_piece(compute, number, held.part_addresses)
                done = perf_counter()
            self.times.compute_s += done - ready
            self.times.hold_s += ready - started
            started = perf_counter()
        return graph.result()
