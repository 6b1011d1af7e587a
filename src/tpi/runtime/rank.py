"""Runs passes on one rank: block after block, hold, compute, allreduce, add. The loop to read first.

A long pass goes through in two parts: while one is summed over the ranks, the other is computed.

Owns no memory of its own (``workspace``, window). One thread runs passes; it is the one that calls the allreduce.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tpi.errors import NumericError
from tpi.runtime.experts import Choices, Chooser, ExpertRunner, Ids
from tpi.runtime.ggml.graph import Graph
from tpi.runtime.ggml.inputs import BatchShape, Seen
from tpi.runtime.passes import Pass
from tpi.runtime.program import PassProgram
from tpi.runtime.protocols import Allreduce, Float32Array, HeldPiece, PieceWindow
from tpi.runtime.rankmodel import N_SPLIT_TOKENS
from tpi.runtime.summing import Part, Summing
from tpi.runtime.times import RankTimes
from tpi.runtime.turns import Turn, first_per_row, turns_of
from tpi.runtime.workspace import PassState, Workspace

ALL_BLOCKS = -1
"""Stands for all blocks, where they are computed as one."""

_MOST_PROGRAM_TOKENS = 8
_PROGRAMS_KEPT = 4


def parts_of(n_tokens: int, n_parts: int) -> list[Part]:
    """The parts in which so many rows go through a rank that has room for ``n_parts``."""
    if n_parts == 1 or n_tokens < N_SPLIT_TOKENS:
        return [Part(0, 0, n_tokens)]
    return [Part(0, 0, n_tokens // 2), Part(1, n_tokens // 2, n_tokens)]


@dataclass(frozen=True)
class _Trip:
    """What all blocks of a pass have in common."""

    pass_id: int
    seen: Seen
    state: PassState


@dataclass(frozen=True)
class _Resident:
    """All weights, in memory for good: every piece, and the addresses of the parts of every block's graph."""

    pieces: Sequence[HeldPiece]
    parts: dict[int, tuple[int, ...]]


class Rank:
    """One rank's slice of the model, running passes. The parts belong to the caller and outlive this."""

    def __init__(
        self,
        workspace: Workspace,
        window: PieceWindow,
        allreduce: Allreduce,
        times: RankTimes | None = None,
        choices: Choices | None = None,
    ) -> None:
        """``times`` go on from where they are. ``choices`` may change which experts are chosen."""
        self._workspace, self._window, self._allreduce = workspace, window, allreduce
        self.times = times or RankTimes()
        self._summing = Summing(workspace, allreduce, self.times)
        model = self._model = workspace.model
        self._turns = turns_of(model)
        self._first_per_row = first_per_row(model.blocks)
        self._experts = ExpertRunner(workspace, window, choices)
        self._has_experts = any(block.experts is not None for block in model.blocks)
        self._has_program = not (self._has_experts or any(block.leaves is not None for block in model.blocks))
        self._resident: _Resident | None = None
        self._programs: dict[tuple[int, Seen], PassProgram | None] = {}
        self._running: PassProgram | None = None

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
            self._workspace.ledger.settle()
            self._workspace.copy(work.copies)
            trip = _Trip(work.pass_id, self._workspace.load(work), self._workspace.begin(work))
            try:
                logits = self._run(work, trip)
            except BaseException:
                self._workspace.clear(work)
                raise
            self._workspace.ledger.end(work)
            return logits
        finally:
            self.times.end(started)

    def stream(self, n_sampled: int) -> Float32Array:
        """After a pass that was asked for it, on a rank with head rows: the residual stream that entered the head, f32
        [n_sampled, n_embd]; valid until the next pass.

        Raises:
            NumericError: it is not finite.
        """
        return self._check(self._workspace.residual[:n_sampled])

    def _run(self, work: Pass, trip: _Trip) -> Float32Array | None:
        self._resident = self._resident or self._find_resident()
        is_few = work.n_tokens == len(work.sampled) <= self._workspace.graphs.most_whole_tokens
        is_few = is_few and not work.wanted.is_streamed
        if self._resident is not None and is_few and all(run.n_tokens == 1 for run in work.runs):
            return self._run_whole(trip, self._resident, work.n_tokens)
        program = self._find_program(work, trip.seen)
        if program is not None:
            return self._run_program(program, work.pass_id)
        parts, is_narrow, logits = parts_of(work.n_tokens, self._workspace.settings.n_parts), False, None
        for turn in self._turns:
            self._settle(trip, parts)
            if not is_narrow and turn.block.index >= self._first_per_row:
                parts, is_narrow = self._keep_sampled(work, parts), True
                if not parts:
                    break
            if turn.block.is_head:
                logits = self._logits(trip, turn, parts)
            elif turn.flow.is_own:
                self._follow(trip, turn, parts)
            elif turn.is_held:
                self._run_block(trip, turn, parts)
            else:
                for part in parts:
                    self._summing.finish(part)
                    self._summing.start(trip.pass_id, turn, part, None)
        self._settle(trip, parts)
        for part in parts:
            self._summing.finish(part)
        return logits

    def _run_whole(self, trip: _Trip, resident: _Resident, n_tokens: int) -> Float32Array | None:
        """A token of each sequence where nothing has to be waited for, neither disk nor other ranks."""
        started, workspace = self.times.now("compute"), self._workspace

        def point(graph: Graph) -> None:
            graph.point_state(workspace.states_of(self._model.blocks, trip.state.within(0, n_tokens)))

        graph = workspace.graphs.of_pass(n_tokens, trip.seen, resident.parts, point)
        if workspace.states:
            point(graph)
        graph.run(workspace.compute)
        self.times.computed(started, ALL_BLOCKS)
        return self._check(graph.result())

    def _find_program(self, work: Pass, seen: Seen) -> PassProgram | None:
        """The pass as one call into C, if weights are resident, all rows are sampled, and sums can be carried through
        there. Experts, blocks that stop in the middle, and states that lie elsewhere from pass to pass, are
        Python's."""
        if self._resident is None or len(work.sampled) != work.n_tokens or work.n_tokens > _MOST_PROGRAM_TOKENS:
            return None
        if not self._has_program or self._workspace.states or work.wanted.is_streamed:
            return None
        key = work.n_tokens, seen
        if key not in self._programs:
            if len(self._programs) == _PROGRAMS_KEPT:
                oldest = self._programs.pop(next(iter(self._programs)))
                if oldest is not None:
                    oldest.close()
            self._programs[key] = self._make_program(BatchShape(work.n_tokens, seen), self._resident.parts)
        return self._programs[key]

    def _make_program(self, shape: BatchShape, resident: dict[int, tuple[int, ...]]) -> PassProgram | None:
        travelling = [turn for turn in self._turns if turn.flow.travels]
        sums = {turn.flow.block: self._allreduce.native(turn.flow, shape.n_tokens * turn.width) for turn in travelling}
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
            self._summing.finish(part)
        n_sampled = len(work.sampled)
        if n_sampled != work.n_tokens or n_sampled > 1:
            self._workspace.arrays.keep_rows(work.sampled)
        return [Part(0, 0, n_sampled)] if n_sampled else []

    def _settle(self, trip: _Trip, parts: Sequence[Part]) -> None:
        """Ends sums of experts before anything else begins, on all ranks alike; where ranks have chosen different
        experts, the block is computed and summed anew with the choice of the lowest, for one part after the other."""
        if not any(part.summing is not None and part.summing[1].says_choice for part in parts):
            return
        turns = [part.summing[1] if part.summing is not None else None for part in parts]
        are_sound = [self._summing.finish(part) for part in parts]
        for part, turn, is_sound in zip(parts, turns, are_sound, strict=True):
            if turn is not None and not is_sound:
                self._sum_again(trip, turn, part)

    def _sum_again(self, trip: _Trip, turn: Turn, part: Part) -> None:
        def start(part: Part, graph: Graph) -> None:
            self._summing.start(trip.pass_id, turn, part, graph.result(), is_again=True)

        self.times.n_rechosen += 1
        experts = turn.block.experts
        assert experts is not None
        chosen = self._workspace.arrays.chosen(experts.n_used, part.start, part.stop) if turn.is_held else None
        agreed = self._summing.agree(trip.pass_id, turn, part, chosen)
        if agreed is None:
            self._summing.start(trip.pass_id, turn, part, None, is_again=True)
        else:
            self._compute(trip, turn, [part], start, agreed)
        if not self._summing.finish(part):
            raise NumericError(f"ranks chose different experts of block {turn.block.index} again")

    def _run_block(self, trip: _Trip, turn: Turn, parts: Sequence[Part]) -> None:
        """Computes the block for all parts, and begins to sum each as soon as it is computed."""

        def start(part: Part, graph: Graph) -> None:
            self._summing.start(trip.pass_id, turn, part, graph.result())

        self._compute(trip, turn, parts, start)

    def _logits(self, trip: _Trip, turn: Turn, parts: Sequence[Part]) -> Float32Array:
        """The head's, of the rows that are left, which are one part."""
        results: list[Float32Array] = []
        self._compute(trip, turn, parts, lambda _, graph: results.append(graph.result()))
        return self._check(results[0])

    def _follow(self, trip: _Trip, turn: Turn, parts: Sequence[Part]) -> None:
        """Computes what follows a sum, for each part."""

        def replace(part: Part, graph: Graph) -> None:
            np.copyto(self._workspace.residual[part.rows], graph.result())

        self._compute(trip, turn, parts, replace)

    def _compute(
        self,
        trip: _Trip,
        turn: Turn,
        parts: Sequence[Part],
        done: Callable[[Part, Graph], None],
        imposed: Ids | None = None,
    ) -> None:
        """Computes the block for the parts, of which ``done`` is told one by one, when its graph has the result. Ends
        their sums of the block before as late as possible. ``imposed`` is the choice of a single part."""
        if self._resident is not None:
            for part in parts:
                self._summing.finish(part)
                graph = self._graph(trip, turn, part, 0)
                self._point(trip, turn, part, graph)
                self._run_resident(trip, turn, part, graph, imposed)
                done(part, graph)
            return
        block, pieces = turn.block, self._workspace.pieces[turn.block.index]
        # A block of several pieces has both parts under way, each in a lane of its own.
        graphs = [self._graph(trip, turn, part, part.number if len(pieces) > 1 else 0) for part in parts]
        self._summing.finish(parts[0])
        dense = [piece for piece in pieces if piece.expert is None]
        for number, piece in enumerate(dense):
            started = self.times.now("disk")
            with self._window.hold(piece.index) as held:
                self.times.held(started, block.index)
                for part, graph in zip(parts, graphs, strict=True):
                    self._summing.finish(part)
                    self._point(trip, turn, part, graph)
                    started = self.times.now("compute")
                    graph.run_piece(self._workspace.compute, number, held.part_addresses)
                    self.times.computed(started, block.index, part.number)
                    if number == len(dense) - 1 and not graph.chooses:
                        done(part, graph)
                if graphs[0].chooses and number == graphs[0].choice_piece:
                    self._run_experts(trip, turn, parts, graphs, imposed)
                if graphs[0].chooses and number >= graphs[0].choice_piece:
                    for part, graph in zip(parts, graphs, strict=True):
                        started = self.times.now("compute")
                        graph.run_piece(self._workspace.compute, number, held.part_addresses, is_second_half=True)
                        self.times.computed(started, block.index, part.number)
                        if number == len(dense) - 1:
                            done(part, graph)

    def _run_resident(self, trip: _Trip, turn: Turn, part: Part, graph: Graph, imposed: Ids | None) -> None:
        assert self._resident is not None
        started = self.times.now("compute")
        graph.point_parts(self._resident.parts[turn.block.index])
        if graph.chooses:
            graph.run_half(self._workspace.compute, is_second_half=False)
            self._run_experts(trip, turn, [part], [graph], imposed)
            graph.run_half(self._workspace.compute, is_second_half=True)
        else:
            graph.run(self._workspace.compute)
        self.times.computed(started, turn.block.index, part.number)

    def _run_experts(
        self, trip: _Trip, turn: Turn, parts: Sequence[Part], graphs: Sequence[Graph], imposed: Ids | None
    ) -> None:
        choosers = [Chooser(graph, part.start, part.stop, imposed) for part, graph in zip(parts, graphs, strict=True)]
        resident = None if self._resident is None else self._resident.pieces
        self._experts.run(trip.pass_id, turn.block, choosers, resident)

    def _graph(self, trip: _Trip, turn: Turn, part: Part, lane: int) -> Graph:
        runs = tuple(n_rows for n_rows, _, _ in trip.state.within(part.start, part.stop))
        return self._workspace.graphs.of(turn.block, BatchShape(part.n_rows, trip.seen, runs), lane)

    def _point(self, trip: _Trip, turn: Turn, part: Part, graph: Graph) -> None:
        """Points a graph, which other blocks use as well, at rows and state."""
        graph.point_rows(part.start)
        states = self._workspace.states_of([turn.block], trip.state.within(part.start, part.stop))
        graph.point_state(states)

    def _check(self, logits: Float32Array) -> Float32Array:
        if not np.isfinite(logits).all():
            raise NumericError(f"rank {self._model.rank} computed logits that are not finite: is its shard damaged?")
        return logits

    def _find_resident(self) -> _Resident | None:
        """All weights, once all pieces are in memory for good."""
        held = self._window.try_resident()
        if held is None:
            return None
        parts = {
            block: tuple(
                address for piece in pieces if piece.expert is None for address in held[piece.index].part_addresses
            )
            for block, pieces in self._workspace.pieces.items()
        }
        return _Resident(held, parts)
