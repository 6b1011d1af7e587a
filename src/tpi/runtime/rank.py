"""Runs passes on one rank: block after block, hold, compute, allreduce, add. The loop to read first.

A long pass goes through in two parts: while one is summed over the ranks, the other is computed.

Owns no memory of its own (``workspace``, window). One thread runs passes; it is the one that calls the allreduce.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tpi.errors import NumericError
from tpi.model.blocks import Block
from tpi.model.flow import flows_of
from tpi.runtime.ggml.builder import BatchShape
from tpi.runtime.ggml.graph import Graph
from tpi.runtime.passes import Pass
from tpi.runtime.program import PassProgram
from tpi.runtime.protocols import Allreduce, Float32Array, PieceWindow, SumStep
from tpi.runtime.times import RankTimes
from tpi.runtime.turns import Turn, first_per_row, turns_of
from tpi.runtime.workspace import N_SPLIT_TOKENS, Workspace

_ROOM_FOR_PASS_GRAPH = 16
"""Where the longest pass has so many tokens, the blocks' intermediates leave room for a whole pass of one."""


ALL_BLOCKS = -1
"""Stands for all blocks, where they are computed as one."""

_MOST_PROGRAM_TOKENS = 8
_PROGRAMS_KEPT = 4


@dataclass
class Part:
    """A run of the pass's rows, and its sum that is under way, if one is, with its start."""

    number: int
    start: int
    stop: int
    summing: tuple[SumStep, Turn, float] | None = None

    @property
    def rows(self) -> slice:
        return slice(self.start, self.stop)


def parts_of(n_tokens: int, n_parts: int) -> list[Part]:
    """The parts in which so many rows go through a rank that has room for ``n_parts``."""
    if n_parts == 1 or n_tokens < N_SPLIT_TOKENS:
        return [Part(0, 0, n_tokens)]
    return [Part(0, 0, n_tokens // 2), Part(1, n_tokens // 2, n_tokens)]


class Rank:
    """One rank's slice of the model, running passes. The parts belong to the caller and outlive this."""

    def __init__(
        self, workspace: Workspace, window: PieceWindow, allreduce: Allreduce, times: RankTimes | None = None
    ) -> None:
        """``times`` go on from where they are."""
        self._workspace, self._window, self._allreduce = workspace, window, allreduce
        model = self._model = workspace.model
        self._turns = turns_of(model.blocks, flows_of(model.blocks, model.partition), model.rank)
        self._first_per_row = first_per_row(model.blocks)
        self._is_alone = model.partition.n_ranks == 1 and workspace.settings.max_tokens >= _ROOM_FOR_PASS_GRAPH
        self._resident: dict[int, tuple[int, ...]] | None = None
        self._programs: dict[tuple[int, int], PassProgram | None] = {}
        self._running: PassProgram | None = None
        self.times = times or RankTimes()

    def run(self, work: Pass) -> Float32Array | None:
        """Runs one pass; returns this rank's logits f32 [n_sampled, rows], None where it has no head rows or none
        are sampled. The result is valid until the next pass.

        Raises:
            NumericError: a contribution or the logits are not finite.
            Cancelled: ``Workspace.compute.abort`` was called, or the window closed.
            KernelError, ModelFileError, LinkError, ProtocolError: from kernels, disk and links.
        """
        started = self.times.begin(work.pass_id)
        try:
            return self._run(work)
        finally:
            self.times.end(started)

    def _run(self, work: Pass) -> Float32Array | None:
        n_kv = self._workspace.load(work)
        self._resident = self._resident or self._find_resident()
        if self._resident is not None and self._is_alone and work.n_tokens == 1 == len(work.sampled):
            return self._run_token(n_kv, self._resident)
        program = self._find_program(work, n_kv)
        if program is not None:
            return self._run_program(program, work.pass_id)
        parts, is_narrow, logits = parts_of(work.n_tokens, self._workspace.settings.n_parts), False, None
        for turn in self._turns:
            if not is_narrow and turn.block.index >= self._first_per_row:
                parts, is_narrow = self._keep_sampled(work, parts), True
                if not parts:
                    break
            if turn.block.is_head:
                self._finish(parts[0])
                logits = self._check(self._compute(turn, parts[0]))
            elif turn.is_held:
                self._run_block(work.pass_id, turn, parts, n_kv)
            else:
                for part in parts:
                    self._finish(part)
                    self._start(work.pass_id, turn, part, None)
        for part in parts:
            self._finish(part)
        return logits

    def _run_token(self, n_kv: int, resident: dict[int, tuple[int, ...]]) -> Float32Array | None:
        """One token where nothing has to be waited for, neither disk nor other ranks."""
        started = self.times.now("compute")
        graph = self._workspace.pass_graph(n_kv, resident)
        graph.run(self._workspace.compute)
        self.times.computed(started, ALL_BLOCKS)
        return self._check(graph.result())

    def _find_program(self, work: Pass, n_kv: int) -> PassProgram | None:
        """The pass as one call into C, if weights are resident, all rows are sampled, and sums can be carried through
        there."""
        if self._resident is None or len(work.sampled) != work.n_tokens or work.n_tokens > _MOST_PROGRAM_TOKENS:
            return None
        key = work.n_tokens, n_kv
        if key not in self._programs:
            if len(self._programs) == _PROGRAMS_KEPT:
                oldest = self._programs.pop(next(iter(self._programs)))
                if oldest is not None:
                    oldest.close()
            self._programs[key] = self._make_program(BatchShape(work.n_tokens, n_kv), self._resident)
        return self._programs[key]

    def _make_program(self, shape: BatchShape, resident: dict[int, tuple[int, ...]]) -> PassProgram | None:
        n_values = shape.n_tokens * self._model.spec.n_embd
        travelling = [turn.flow for turn in self._turns if turn.flow.travels]
        sums = {flow.block: self._allreduce.native(flow, n_values) for flow in travelling}
        found = {block: entry for block, entry in sums.items() if entry is not None}
        if not found or len(found) < len(sums):
            return None
        return PassProgram(self._workspace, self._turns, shape, resident, found)

    def _run_program(self, program: PassProgram, pass_id: int) -> Float32Array | None:
        compute_s, sum_s, n_sums = program.compute_s, program.sum_s, program.n_sums
        self._running = program
        try:
            logits = program.run(pass_id)
        finally:
            self._running = None
            self.times.compute_s += program.compute_s - compute_s
            self.times.allreduce_s += program.sum_s - sum_s
            self.times.n_sums += program.n_sums - n_sums
        if self.times.trace is not None:
            program.tell(self.times.trace, pass_id)
        return None if logits is None else self._check(logits)

    def close(self) -> None:
        """Frees what passes were prepared with; idempotent."""
        for program in self._programs.values():
            if program is not None:
                program.close()
        self._programs.clear()

    @property
    def doing(self) -> str:
        """``idle``, ``disk``, ``compute`` or ``sum``: now; from any thread."""
        running = self._running
        return self.times.doing if running is None else running.doing

    def _keep_sampled(self, work: Pass, parts: Sequence[Part]) -> list[Part]:
        """No row needs another any more: only those that are sampled go on."""
        for part in parts:
            self._finish(part)
        n_sampled = len(work.sampled)
        if n_sampled != work.n_tokens or n_sampled > 1:
            self._workspace.residual[:n_sampled] = self._workspace.residual[work.sampled]
        return [Part(0, 0, n_sampled)] if n_sampled else []

    def _run_block(self, pass_id: int, turn: Turn, parts: Sequence[Part], n_kv: int) -> None:
        """Computes the block for all parts, and begins to sum each as soon as it is computed."""
        block, pieces = turn.block, self._workspace.pieces[turn.block.index]
        if self._resident is not None:
            addresses = self._resident[block.index]
            for part in parts:
                graph = self._graph(block, part, n_kv)
                self._finish(part)
                graph.point_rows(part.start)
                started = self.times.now("compute")
                graph.point_parts(addresses)
                graph.run(self._workspace.compute)
                self.times.computed(started, block.index, part.number)
                self._start(pass_id, turn, part, graph.result())
            return
        # A block of several pieces has both parts under way, each in a lane of its own.
        lanes = [part.number if len(pieces) > 1 else 0 for part in parts]
        graphs = [self._graph(block, part, n_kv, lane) for part, lane in zip(parts, lanes, strict=True)]
        self._finish(parts[0])
        for number, piece in enumerate(pieces):
            started = self.times.now("disk")
            with self._window.hold(piece.index) as held:
                self.times.held(started, block.index)
                for part, graph in zip(parts, graphs, strict=True):
                    if number == 0:
                        self._finish(part)
                    graph.point_rows(part.start)
                    started = self.times.now("compute")
                    graph.run_piece(self._workspace.compute, number, held.part_addresses)
                    self.times.computed(started, block.index, part.number)
                    if number == len(pieces) - 1:
                        self._start(pass_id, turn, part, graph.result())

    def _compute(self, turn: Turn, part: Part) -> Float32Array:
        """The head's logits for the rows of ``part``."""
        block, graph = turn.block, self._graph(turn.block, part, 0)
        if self._resident is not None:
            started = self.times.now("compute")
            graph.point_parts(self._resident[block.index])
            graph.run(self._workspace.compute)
            self.times.computed(started, block.index)
            return graph.result()
        for number, piece in enumerate(self._workspace.pieces[block.index]):
            started = self.times.now("disk")
            with self._window.hold(piece.index) as held:
                self.times.held(started, block.index)
                started = self.times.now("compute")
                graph.run_piece(self._workspace.compute, number, held.part_addresses)
                self.times.computed(started, block.index)
        return graph.result()

    def _graph(self, block: Block, part: Part, n_kv: int, lane: int = 0) -> Graph:
        return self._workspace.graph(block, BatchShape(part.stop - part.start, n_kv), lane)

    def _start(self, pass_id: int, turn: Turn, part: Part, partial: Float32Array | None) -> None:
        """Begins to sum what was computed for ``part``."""
        started = self.times.now("sum")
        if turn.flow.is_handed_over and partial is not None and self._model.rank == turn.flow.contributors[0]:
            np.add(partial, self._workspace.residual[part.rows], out=partial)
        step = SumStep(pass_id, turn.flow, part.number)
        self._allreduce.start(step, partial, self._workspace.total[part.rows] if turn.is_received else None)
        part.summing = step, turn, started
        self.times.waited(started, turn.block.index, part.number)

    def _finish(self, part: Part) -> None:
        """Adds the sum that is under way, if one is, to the residual stream."""
        if part.summing is None:
            return
        started = self.times.now("sum")
        (step, turn, began), part.summing = part.summing, None
        self._allreduce.finish(step)
        if turn.is_received:
            residual, total = self._workspace.residual[part.rows], self._workspace.total[part.rows]
            if turn.flow.is_handed_over:
                np.copyto(residual, total)
            else:
                np.add(residual, total, out=residual)
        self.times.waited(started, turn.block.index, part.number)
        self.times.summed(began, turn.block.index, part.number)

    def _check(self, logits: Float32Array) -> Float32Array:
        if not np.isfinite(logits).all():
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
