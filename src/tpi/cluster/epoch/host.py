"""One rank of a plan, ready to run passes: its window, its memory, its graphs. The same on master and workers.

Owns window and workspace. The thread that makes it runs the passes; any thread may ask for its status.
"""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Self

from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.footprint import needs_of, piece_sizes
from tpi.cluster.epoch.rankplan import rank_settings
from tpi.cluster.reports import RankStatus
from tpi.cluster.transfer.stock import Stock
from tpi.config import Resources
from tpi.errors import TpiError
from tpi.native.allocator import give_back_freed
from tpi.observe import peak_resident_bytes, resident_bytes
from tpi.planner.memory import MemoryPlan, plan_memory
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.passes import Copies, Pass
from tpi.runtime.protocols import Allreduce, Float32Array
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.times import RankTimes
from tpi.runtime.workspace import Workspace
from tpi.trace import Trace
from tpi.weights.files import round_up
from tpi.weights.shards.patrol import Patrol
from tpi.weights.stored import StoredWeights
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.legacy import Legacy
from tpi.weights.streaming.readways import find_way
from tpi.weights.streaming.window import Window

_LOAN_STEP_CELLS = 32
"""By so many cells the KV cache takes back memory that was lent to the window."""

_QUIET_S = 2.0
"""How long after a pass the disk is left alone."""


class RankHost:
    """A rank of a plan: made, then ``load``, ``connect``, ``run``; from epoch to epoch as long as the rank's own part
    of the plan stays the same. A context manager; ``close`` is idempotent."""

    def __init__(
        self,
        model: RankModel,
        settings: RankSettings,
        device: "HostDevice",
        piece_bytes: Sequence[int],
        repacker: Repacker | None = None,
    ) -> None:
        """Takes the memory that passes need, and plans what is left for weights: ``piece_bytes`` is what each piece
        takes in the window. Takes over the repacker whose order the weights will have.

        Raises:
            MemoryBudgetError: ``resources`` allow less than is needed; the error names the minimum.
            KernelError: the graphs cannot be allocated.
        """
        self._device, self._piece_bytes = device, piece_bytes
        self._model, self._settings = model, settings
        self._stack = ExitStack()
        self._repacking = ""
        if repacker is not None:
            self._stack.enter_context(repacker)
            self._repacking = repacker.name
        self._workspace = self._stack.enter_context(Workspace(model, settings, repacker))
        self._rank: Rank | None = None
        self._times = RankTimes()
        self.trace: Trace | None = None
        self._window: Window | None = None
        self._count_links: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._counted = 0, 0
        self._busy_until_s = time.monotonic() + _QUIET_S
        self._damage: TpiError | None = None
        self._n_free_cells = _LOAN_STEP_CELLS
        """The window uses none of the memory of so many cells."""
        try:
            self.memory = self._plan_memory()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._window is not None:
            self._window.close()
        self._stack.close()

    def suits(self, model: RankModel, settings: RankSettings) -> bool:
        """Whether everything that this host holds is what a plan asks of this rank, but for what others hold."""
        return (self._model.pieces, self._settings) == (model.pieces, settings) and self._model.rank == model.rank

    def adopt(self, model: RankModel, last_pass: int | None) -> None:
        """Goes on with a plan that it suits, after the pass of this number; None: forgets what was computed."""
        self._model = model
        self._workspace.adopt(model)
        if last_pass is None:
            self._workspace.forget()
            self._share_memory(0)
        else:
            self._workspace.ledger.resume(last_pass)

    @property
    def last_pass(self) -> int:
        """The number of the pass that was through last, 0 if none was since everything was forgotten."""
        return self._workspace.ledger.last_pass

    def bequeath(self, model: RankModel, repacking: str) -> Legacy | None:
        """Closes everything but the pieces in memory that ``model``, in the order of ``repacking``, has as well."""
        if self._window is None or repacking != self._repacking:
            self.close()
            return None
        window, self._window = self._window, None
        self.close()
        here = {(piece.block, piece.parts): piece.index for piece in self._model.pieces}
        found = ((piece.index, here.get((piece.block, piece.parts))) for piece in model.pieces)
        return window.bequeath({index: old for index, old in found if old is not None})

    def load(self, stock: Stock, legacy: Legacy | None = None) -> None:
        """Opens the window, which begins to read; the pieces have the sizes that were planned. A shard is compared with
        its checksums while no pass runs; a damaged one in the store is removed, so that the next start makes it anew.
        Pieces of ``legacy``, which is closed, are taken from there.

        Raises:
            ModelFileError: the shard cannot be opened.
        """
        give_back_freed()  # what making the shard took
        budget, lent = self.memory.window_bytes, self._lent_bytes(self._n_free_cells)
        try:
            reader = PieceReader(stock.stored, find_way(stock.stored, budget, stock.disk_note))
            self._window = Window(stock.stored, reader, budget, lent, legacy, self._model.least_slots)
        finally:
            if legacy is not None:
                legacy.close()
        if stock.shard is not None:
            patrol = Patrol(stock.shard, self._is_idle, self._on_damage, stock.is_stored_here)
            self._stack.enter_context(patrol)

    def trace_to(self, trace: Trace | None) -> None:
        """From now on ``trace`` is told what this rank does when."""
        self.trace = self._times.trace = trace
        if self._window is not None:
            self._window.trace = trace

    def connect(self, allreduce: Allreduce, count_links: Callable[[], tuple[int, int]]) -> None:
        """From now on passes can run. ``count_links`` tells bytes sent and received."""
        assert self._window is not None
        self._count_links = count_links
        self._rank = Rank(self._workspace, self._window, allreduce, self._times)

    def disconnect(self) -> None:
        """No passes until the next ``connect``."""
        if self._rank is not None:
            self._rank.close()
        self._counted = self._count_all()
        self._count_links, self._rank = lambda: (0, 0), None
        gc.collect()  # an epoch's objects know each other, and would stay until the interpreter happens to look
        give_back_freed()

    def interrupt(self) -> None:
        """Ends the pass that runs, within one graph node, and those that come until ``allow``. Any thread."""
        self._workspace.compute.abort()
        if (window := self._window) is not None:
            window.interrupt()

    def allow(self) -> None:
        """Lets passes run again."""
        self._workspace.compute.allow()
        if self._window is not None:
            self._window.allow()

    def run(self, work: Pass) -> Float32Array | None:
        """See ``runtime.rank.Rank.run``.

        Raises:
            ChecksumError, ModelFileError: the shard was found to be damaged since.
        """
        assert self._rank is not None
        if self._damage is not None:
            raise self._damage
        self._busy_until_s = float("inf")
        try:
            self._share_memory(max(work.n_seen, int(work.cells.max()) + 1))
            return self._rank.run(work)
        finally:
            self._busy_until_s = time.monotonic() + _QUIET_S

    def stream(self, n_sampled: int) -> Float32Array:
        """See ``runtime.rank.Rank.stream``."""
        assert self._rank is not None
        return self._rank.stream(n_sampled)

    def between_passes(self, copies: Copies, n_cells: int) -> Workspace:
        """What is kept of sequences, as the last pass has left it, which holds, with ``copies`` made; the memory of the
        first ``n_cells`` cells is the cache's from now on.

        Raises:
            ProtocolError: no recurrent state for where a sequence goes on was kept.
        """
        self._workspace.ledger.settle()
        self._workspace.copy(copies)
        self._workspace.ledger.copied()
        self._share_memory(max(n_cells, self._n_free_cells))
        return self._workspace

    def _share_memory(self, n_cells: int) -> None:
        """Takes back from the window what it was lent of the memory of the first ``n_cells`` cells, and lends it that
        of all others, which are forgotten."""
        n_free = max(_LOAN_STEP_CELLS, round_up(n_cells, _LOAN_STEP_CELLS))
        if n_free == self._n_free_cells or self._window is None:
            return
        n_bytes = self.memory.window_bytes + self._lent_bytes(n_free)
        if n_free > self._n_free_cells:
            self._window.shrink(n_bytes)
        else:
            self._workspace.cache.forget(n_free)
            self._window.grow(n_bytes)
        self._n_free_cells = n_free

    def _lent_bytes(self, n_cells: int) -> int:
        """What the window may use of the KV cache's memory while only ``n_cells`` cells were written."""
        return max(0, self.memory.lendable_bytes - self._workspace.cache.written_bytes(n_cells))

    def _count_all(self) -> tuple[int, int]:
        (sent, received), (sent_before, received_before) = self._count_links(), self._counted
        return sent + sent_before, received + received_before

    def _is_idle(self) -> bool:
        return time.monotonic() > self._busy_until_s

    def _on_damage(self, error: TpiError) -> None:
        self._damage = error

    def _plan_memory(self) -> MemoryPlan:
        needs, resources = needs_of(self._workspace, self._device.process_bytes), self._device.resources
        sizes = piece_sizes(self._model, self._piece_bytes)
        limits = resources.memory_bytes, resources.window_bytes
        return plan_memory(needs, sizes.minimum_bytes, sizes.total_bytes, *limits)

    def status(self) -> RankStatus:
        """This rank's figures; from any thread."""
        sent, received = self._count_all()
        window, times = self._window.stats() if self._window else None, self._times
        return RankStatus(
            rank=self._model.rank,
            name=self._device.name,
            memory_limit_bytes=self._device.resources.memory_bytes,
            peak_rss_bytes=peak_resident_bytes(),
            rss_bytes=resident_bytes(),
            shard_bytes=sum(piece.n_bytes for piece in self._model.pieces),
            planned_bytes=self.memory.total_bytes,
            window_bytes=window.total_bytes if window else self.memory.window_bytes,
            pinned_bytes=window.pinned_bytes if window else 0,
            n_pinned=window.pinned_pieces if window else 0,
            n_pieces=len(self._model.pieces),
            disk_mode=window.disk_mode if window else "",
            streamed_bytes=window.streamed_bytes if window else 0,
            hold_s=times.hold_s,
            compute_s=times.compute_s,
            allreduce_s=times.allreduce_s,
            sent_bytes=sent,
            received_bytes=received,
            n_passes=times.n_passes,
            n_sums=times.n_sums,
            n_rechosen=times.n_rechosen,
            doing=self._rank.doing if self._rank is not None else "idle",
            share=0.0,
        )


@dataclass(frozen=True)
class HostDevice:
    """The device that a host runs on: its name, what it may use, and what its process had before it held anything, with
    what it will need for other things than its rank."""

    name: str
    resources: Resources
    process_bytes: int

    @staticmethod
    def measured(name: str, resources: Resources, beside_bytes: int = 0) -> "HostDevice":
        """Measured now: once in the life of a process, before it holds anything. ``beside_bytes`` are kept for what
        does not belong to the rank."""
        give_back_freed()
        return HostDevice(name, resources, resident_bytes() + beside_bytes)


def piece_bytes_of(model: RankModel, whole: StoredWeights | None) -> list[int]:
    """What each piece takes in the window: those of a shard, or of the model's own files."""
    if whole is not None:
        return [piece.arena_bytes for piece in whole.pieces]
    return [round_up(piece.n_bytes) for piece in model.pieces]


def host_of(
    plan: Plan,
    model: RankModel,
    device: HostDevice,
    whole: StoredWeights | None = None,
    repacker: Repacker | None = None,
) -> RankHost:
    """The host of the plan's rank; raises as ``RankHost``. It will read ``whole``, the model's own files, or else a
    shard, which has the repacker's order if there is one."""
    settings = rank_settings(plan, device.resources.n_threads)
    piece_bytes = piece_bytes_of(model, None if repacker else whole)
    return RankHost(model, settings, device, piece_bytes, repacker)
