"""One rank of a plan, ready to run passes: its window, its memory, its graphs. The same on master and workers.

Owns window and workspace. The thread that makes it runs the passes; any thread may ask for its status.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Self

from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.footprint import needs_of
from tpi.cluster.reports import RankStatus
from tpi.cluster.transfer.stock import Stock
from tpi.config import Resources
from tpi.errors import ChecksumError, TpiError
from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.architectures import blocks_of
from tpi.native.allocator import give_back_freed
from tpi.observe import peak_resident_bytes, resident_bytes
from tpi.planner.memory import MemoryPlan, plan_memory
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Allreduce, Float32Array
from tpi.runtime.rank import Rank
from tpi.runtime.workspace import RankModel, RankSettings, Workspace
from tpi.weights.files import round_up
from tpi.weights.layout import lay_out
from tpi.weights.shards.patrol import Patrol
from tpi.weights.stored import StoredWeights
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.pins import minimum_budget
from tpi.weights.streaming.readways import find_way
from tpi.weights.streaming.window import Window

_LOAN_STEP_CELLS = 32
"""By so many cells the KV cache takes back memory that was lent to the window."""

_QUIET_S = 2.0
"""How long after a pass the disk is left alone."""


class RankHost:
    """A rank of a plan: made, then ``load``, ``connect``, ``run``. A context manager; ``close`` is idempotent."""

    def __init__(
        self,
        model: RankModel,
        settings: RankSettings,
        name: str,
        resources: Resources,
        piece_bytes: Sequence[int],
        repacker: Repacker | None = None,
    ) -> None:
        """Takes the memory that passes need, and plans what is left for weights: ``piece_bytes`` is what each piece
        takes in the window. Takes over the repacker whose order the weights will have.

        Raises:
            MemoryBudgetError: ``resources`` allow less than is needed; the error names the minimum.
            KernelError: the graphs cannot be allocated.
        """
        self._name, self._resources, self._piece_bytes = name, resources, piece_bytes
        self._model = model
        self._stack = ExitStack()
        if repacker is not None:
            self._stack.enter_context(repacker)
        give_back_freed()
        process_bytes = resident_bytes()
        self._workspace = self._stack.enter_context(Workspace(model, settings, repacker))
        self._rank: Rank | None = None
        self._window: Window | None = None
        self._count_links: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._busy_until_s = time.monotonic() + _QUIET_S
        self._damage: TpiError | None = None
        self._n_free_cells = _LOAN_STEP_CELLS
        """The window uses none of the memory of so many cells."""
        try:
            self.memory = self._plan_memory(process_bytes)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._stack.close()

    def load(self, stock: Stock) -> None:
        """Opens the window, which begins to read; the pieces have the sizes that were planned. A shard is compared with
        its checksums while no pass runs; a damaged one in the store is removed, so that the next start makes it anew.

        Raises:
            ModelFileError: the shard cannot be opened.
        """
        give_back_freed()  # what making the shard took
        budget, lent = self.memory.window_bytes, self._lent_bytes(self._n_free_cells)
        reader = PieceReader(stock.stored, find_way(stock.stored, budget, stock.disk_note))
        self._window = self._stack.enter_context(Window(stock.stored, reader, budget, lent))
        if stock.shard is not None:
            remove = stock.shard.path if stock.is_stored_here else None
            self._stack.enter_context(Patrol(stock.shard, self._is_idle, partial(self._on_damage, remove)))

    def connect(self, allreduce: Allreduce, count_links: Callable[[], tuple[int, int]]) -> None:
        """From now on passes can run. ``count_links`` tells bytes sent and received."""
        assert self._window is not None
        self._count_links = count_links
        self._rank = Rank(self._workspace, self._window, allreduce)

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
            self._make_room(int(work.cells.max()) + 1)
            return self._rank.run(work)
        finally:
            self._busy_until_s = time.monotonic() + _QUIET_S

    def _make_room(self, n_cells: int) -> None:
        """Takes back from the window what it was lent of the memory of the first ``n_cells`` cells."""
        if n_cells > self._n_free_cells:
            assert self._window is not None
            n_free = round_up(n_cells, _LOAN_STEP_CELLS)
            self._window.shrink(self.memory.window_bytes + self._lent_bytes(n_free))
            self._n_free_cells = n_free

    def _lent_bytes(self, n_cells: int) -> int:
        """What the window may use of the KV cache's memory while only ``n_cells`` cells were written."""
        return max(0, self.memory.lendable_bytes - self._workspace.cache.written_bytes(n_cells))

    def _is_idle(self) -> bool:
        return time.monotonic() > self._busy_until_s

    def _on_damage(self, remove: Path | None, error: TpiError) -> None:
        if remove is not None and isinstance(error, ChecksumError):
            with contextlib.suppress(OSError):
                remove.unlink(missing_ok=True)
            error = ChecksumError(f"{error} (it was removed: start again to get it anew)")
        self._damage = error

    def _plan_memory(self, process_bytes: int) -> MemoryPlan:
        needs = needs_of(self._workspace, process_bytes)
        limits = self._resources.memory_bytes, self._resources.window_bytes
        return plan_memory(needs, minimum_budget(self._piece_bytes), sum(self._piece_bytes), *limits)

    def status(self) -> RankStatus:
        """This rank's figures; from any thread."""
        sent, received = self._count_links()
        window = self._window.stats() if self._window else None
        times = self._rank.times if self._rank else None
        return RankStatus(
            rank=self._model.rank,
            name=self._name,
            memory_limit_bytes=self._resources.memory_bytes,
            peak_rss_bytes=peak_resident_bytes(),
            rss_bytes=resident_bytes(),
            shard_bytes=sum(piece.n_bytes for piece in self._model.pieces),
            planned_bytes=self.memory.total_bytes,
            window_bytes=window.pinned_bytes + window.ring_bytes if window else self.memory.window_bytes,
            pinned_bytes=window.pinned_bytes if window else 0,
            n_pinned=window.pinned_pieces if window else 0,
            n_pieces=len(self._model.pieces),
            disk_mode=window.disk_mode if window else "",
            streamed_bytes=window.streamed_bytes if window else 0,
            hold_s=times.hold_s if times else 0.0,
            compute_s=times.compute_s if times else 0.0,
            allreduce_s=times.allreduce_s if times else 0.0,
            sent_bytes=sent,
            received_bytes=received,
            n_passes=times.n_passes if times else 0,
            share=0.0,
        )


def rank_model(plan: Plan) -> RankModel:
    """What the plan's rank holds."""
    blocks = blocks_of(plan.spec)
    pieces = lay_out(plan.spec, blocks, plan.partition, plan.rank)
    return RankModel(plan.spec, blocks, plan.partition, plan.rank, pieces)


def rank_settings(plan: Plan, n_threads: int) -> RankSettings:
    """What the plan says about every rank's workspace."""
    return RankSettings(plan.max_tokens, plan.n_cells, n_threads, TYPES_BY_NAME[plan.kv_type], plan.max_sampled)


def piece_bytes_of(model: RankModel, whole: StoredWeights | None) -> list[int]:
    """What each piece takes in the window: those of a shard, or of the model's own files."""
    if whole is not None:
        return [piece.arena_bytes for piece in whole.pieces]
    return [round_up(piece.n_bytes) for piece in model.pieces]


def host_of(
    plan: Plan,
    model: RankModel,
    name: str,
    resources: Resources,
    whole: StoredWeights | None = None,
    repacker: Repacker | None = None,
) -> RankHost:
    """The host of the plan's rank; raises as ``RankHost``. It will read ``whole``, the model's own files, or else a
    shard, which has the repacker's order if there is one."""
    settings = rank_settings(plan, resources.n_threads)
    piece_bytes = piece_bytes_of(model, None if repacker else whole)
    return RankHost(model, settings, name, resources, piece_bytes, repacker)
