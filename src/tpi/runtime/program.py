"""A pass of a few tokens over resident weights as one call into C: block after block, sum after sum, without Python.

Does what ``rank`` does in its loop, to the same bits; for ranks among others, whose sums are carried through in C, too.
Owns its graphs and C structs; window, sums and workspace outlive it. One thread runs it.
"""

import ctypes
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from ctypes import POINTER, c_double, c_float, c_int32, c_int64, c_void_p
from typing import NoReturn, Self

from tpi.errors import Cancelled, KernelError, NumericError
from tpi.runtime.ggml.graph import Graph
from tpi.runtime.ggml.inputs import BatchShape
from tpi.runtime.protocols import Float32Array, NativeSum, SumStep
from tpi.runtime.turns import Turn
from tpi.runtime.workspace import Workspace
from tpi.trace import Kind, Trace

_TIMED_OUT, _FAULTY, _COMPUTE_FAILED = 1, 3, 6
_ABORTED = 1
_DOING = ("idle", "compute", "sum")


class _Turn(ctypes.Structure):
    """``turn``."""

    _fields_ = (
        *((name, c_void_p) for name in ("graph", "plan")),
        ("places", POINTER(c_void_p)),
        ("values", POINTER(c_void_p)),
        *((name, c_void_p) for name in ("partial", "sum", "total")),
        ("n", c_int64),
        *((name, c_int32) for name in ("n_places", "block", "is_last", "is_handed_over", "hands_over")),
        *((name, c_int32) for name in ("is_kept", "is_own", "format")),
        ("largest", c_float),
    )


class _Program(ctypes.Structure):
    """``program``."""

    _fields_ = (
        *((name, c_void_p) for name in ("compute", "residual", "turns", "times")),
        *((name, c_int32) for name in ("n_turns", "at", "stage", "doing", "status")),
        ("n_sums", c_int64),
        ("compute_s", c_double),
        ("sum_s", c_double),
    )


class PassProgram:
    """All turns of a rank for passes of ``shape``, every row of them sampled. A context manager; ``close`` is
    idempotent."""

    def __init__(
        self,
        workspace: Workspace,
        turns: Sequence[Turn],
        shape: BatchShape,
        resident: Mapping[int, Sequence[int]],
        sums: Mapping[int, NativeSum],
    ) -> None:
        """``resident`` has the addresses of every held block's parts; ``sums`` carry the blocks' sums through, but for
        those after which nothing travels; there is one at least.

        Raises:
            KernelError: the graphs cannot be placed.
        """
        self._workspace, self._shape, self._blocks, self._sums = workspace, shape, turns, sums
        self._library = next(iter(sums.values())).library
        self._stack = ExitStack()
        self._graphs: dict[int, Graph] = {}
        self._logits: Float32Array | None = None
        try:
            made = [self._turn(turn, resident) for turn in turns]
        except BaseException:
            self.close()
            raise
        self._turns = (_Turn * len(made))(*made)
        self._times = (c_double * (3 * len(made)))()
        self._program = _Program(
            compute=workspace.compute.function_address,
            residual=workspace.residual.ctypes.data,
            turns=ctypes.addressof(self._turns),
            times=ctypes.addressof(self._times),
            n_turns=len(made),
        )
        self._address = ctypes.addressof(self._program)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()
        self._graphs.clear()

    @property
    def doing(self) -> str:
        """``idle``, ``compute`` or ``sum``; from any thread."""
        return _DOING[self._program.doing]

    @property
    def compute_s(self) -> float:
        """Since it was made; as the next two."""
        return float(self._program.compute_s)

    @property
    def sum_s(self) -> float:
        return float(self._program.sum_s)

    @property
    def n_sums(self) -> int:
        return int(self._program.n_sums)

    def run(self, pass_id: int) -> Float32Array | None:
        """Runs one pass whose inputs are loaded; its logits, None where this rank holds no head rows.

        Raises:
            Cancelled, KernelError: as ``Compute.run``.
            NumericError, LinkError, ProtocolError: as ``Allreduce.finish``.
        """
        self._program.at = self._program.stage = 0
        self._workspace.compute.prepare([graph.whole_plan for graph in self._graphs.values()])
        while result := self._library.program_run(self._address, pass_id):
            if result != _TIMED_OUT:  # a signal: Python has looked at it
                self._raise(result, pass_id)
        return self._logits

    def tell(self, trace: Trace, pass_id: int) -> None:
        """Adds what the pass that ran last did when."""
        for number, turn in enumerate(self._blocks):
            began, computed, summed = self._times[3 * number : 3 * number + 3]
            block = turn.block.index
            if turn.is_held:
                trace.add(Kind.COMPUTE, began, computed, pass_id, block)
            if block in self._sums:
                trace.add(Kind.WAIT, computed, summed, pass_id, block)
                trace.add(Kind.SUM, computed, summed, pass_id, block)

    def _turn(self, turn: Turn, resident: Mapping[int, Sequence[int]]) -> _Turn:
        workspace, block, n_rows = self._workspace, turn.block, self._shape.n_tokens
        carrier = self._sums.get(block.index)
        made = _Turn(
            sum=None if carrier is None else carrier.address,
            total=workspace.arrays.total(turn.width, 0, n_rows).ctypes.data if turn.is_received else None,
            n=n_rows * turn.width,
            block=block.index,
            is_last=block.is_head,
            is_handed_over=turn.flow.is_handed_over,
            hands_over=turn.hands_over,
            is_kept=block.is_kept,
            is_own=turn.flow.is_own,
            format=0 if carrier is None else carrier.type_of(turn.flow)[0],
            largest=0.0 if carrier is None else carrier.type_of(turn.flow)[1],
        )
        if turn.is_held:
            graph = self._graph(turn)
            places, values = graph.addresses(resident[block.index], workspace.states_of([block]))
            made.graph, made.plan = graph.graph, ctypes.addressof(graph.whole_plan)
            made.places, made.values = (c_void_p * len(places))(*places), (c_void_p * len(values))(*values)
            made.n_places, made.partial = len(places), graph.result().ctypes.data
            if block.is_head:
                self._logits = graph.result()
        return made

    def _graph(self, turn: Turn) -> Graph:
        """One for all blocks of equal structure."""
        structure = self._workspace.graphs.structure_of(turn.block)
        if structure not in self._graphs:
            graph = self._workspace.graphs.make(turn.block, self._shape)
            self._graphs[structure] = self._stack.enter_context(graph)
        return self._graphs[structure]

    def _raise(self, result: int, pass_id: int) -> NoReturn:
        turn = self._blocks[self._program.at]
        step = SumStep(pass_id, turn.flow)
        carrier = self._sums.get(turn.block.index)
        if result == _COMPUTE_FAILED:
            if self._program.status == _ABORTED:
                raise Cancelled("the computation was stopped")
            raise KernelError(f"the kernels failed with status {self._program.status}")
        if carrier is None:
            assert result == _FAULTY
            raise NumericError(
                f"rank {self._workspace.model.rank} computed values that are not finite in {step}: check its memory "
                "and its model file"
            )
        carrier.raise_for(result, step)
