"""One rank of a model by itself, in a process of its own whose memory is that of a worker: run by ``bench.window``.

    python -m bench.streaming REQUEST-AS-JSON

What the other ranks would add is made up: a sum is this rank's part, scaled and rounded like a payload. Links are not
there, so their buffers (some MB) are not either. Prints one JSON line.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

import tpi.cluster.worker  # noqa: F401 - what a worker loads belongs to what is measured
from bench.computing import Computed, Recording
from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.architectures import model_of
from tpi.model.blocks import Block
from tpi.model.flow import Flow
from tpi.model.spans import Span
from tpi.native.allocator import keep_allocator_small
from tpi.observe import peak_resident_bytes, resident_bytes
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array, NativeSum, SumStep
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.times import RankTimes
from tpi.runtime.workspace import Workspace
from tpi.weights.shards.shard import open_shard
from tpi.weights.stored import stored_from_shard
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.readways import NOTE_SUFFIX, find_way
from tpi.weights.streaming.window import Window


class Request(msgspec.Struct, frozen=True):
    """What to measure. ``window_bytes`` None: ``window_part`` of the shard. ``sum_s`` is how long a sum takes,
    ``kv_type`` the GGUF name of what the KV cache is made of."""

    shard: str
    window_bytes: int | None = None
    window_part: float = 0.5
    n_cells: int = 2048
    n_prefill: int = 512
    chunk_tokens: int = 128
    n_threads: int = 1
    n_pairs: int = 5
    sum_s: float = 0.0
    kv_type: str = "F16"
    n_parts: int = 1


class Figures(msgspec.Struct, frozen=True):
    """What came out: medians over passes of one token; ``rate_ratio`` and ``time_ratio`` are medians over pairs."""

    peak_rss_bytes: int
    base_rss_bytes: int
    kv_bytes: int
    window_bytes: int
    pinned_bytes: int
    shard_bytes: int
    streamed_bytes_per_token: int
    is_direct: bool
    disk_mode: str
    open_s: float
    prefill_tokens: int
    prefill_s: float
    prefill_compute_s: float
    token_s: float
    compute_s: float
    bare_pass_s: float
    disk_bytes_per_s: float
    streaming_bytes_per_s: float
    rate_ratio: float
    time_ratio: float
    computing: Recording
    """How long each block computed."""


class MadeUpSums:
    """Satisfies ``Allreduce``: the sum is the own part as large as the sum of all would be, rounded to 16 bits."""

    def __init__(self, n_ranks: int, sum_s: float = 0.0, started: Callable[[SumStep, int], None] | None = None) -> None:
        """``started`` is told of every sum, with its number of rows."""
        self._scale, self._sum_s, self._started = np.float32(n_ranks**0.5), sum_s, started

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        """See ``Allreduce``."""
        if self._started is not None and partial is not None:
            self._started(step, len(partial))
        if out is not None:
            out[:] = 0 if partial is None else (partial * self._scale).astype(np.float16)

    def finish(self, step: SumStep) -> None:
        """See ``Allreduce``."""
        if self._sum_s:
            time.sleep(self._sum_s)

    def native(self, flow: Flow, n_values: int) -> NativeSum | None:
        """See ``Allreduce``."""
        return None


class _Recorder:
    """Notes how long each block was computed, sum by sum."""

    def __init__(self, times: RankTimes, blocks: Sequence[Block]) -> None:
        self._times, self._names, self._last_s = times, [block.name for block in blocks], 0.0
        self._seen: dict[tuple[str, int], list[float]] = {}

    def note(self, step: SumStep, n_rows: int) -> None:
        computed_s = self._times.compute_s
        self._seen.setdefault((self._names[step.flow.block], n_rows), []).append(computed_s - self._last_s)
        self._last_s = computed_s

    def recording(self) -> Recording:
        entries = (Computed(name, n, statistics.median(seconds)) for (name, n), seconds in self._seen.items())
        return Recording(tuple(entries))


class _Timed(msgspec.Struct, frozen=True):
    """A pass of one token, or with ``compute_s`` 0 a trip through the window without computing."""

    wall_s: float
    compute_s: float
    streamed_bytes: int


class _Measured:
    """A rank, its window, and passes through them."""

    def __init__(self, rank: Rank, window: Window, n_pieces: int, n_embd: int, n_cells: int) -> None:
        self._rank, self._window, self._n_pieces, self._n_embd, self._n_cells = rank, window, n_pieces, n_embd, n_cells
        self._random = np.random.default_rng(0)
        self._n_passes = 0

    def run(self, first_cell: int, n_tokens: int) -> None:
        """One pass over cells from ``first_cell``, all earlier ones visible."""
        positions = np.arange(first_cell, first_cell + n_tokens)
        self._n_passes += 1
        work = Pass(
            pass_id=self._n_passes,
            embeddings=self._random.standard_normal((n_tokens, self._n_embd), np.float32),
            positions=positions.astype(np.int32),
            cells=positions.astype(np.int64),
            visible=np.arange(first_cell + n_tokens)[None, :] <= positions[:, None],
            sampled=np.array([n_tokens - 1], np.int32),
        )
        self._rank.run(work)

    def token(self) -> _Timed:
        """One token in the last cell."""
        streamed, computed, started = self._streamed(), self._rank.times.compute_s, time.perf_counter()
        self.run(self._n_cells - 1, 1)
        wall = time.perf_counter() - started
        return _Timed(wall, self._rank.times.compute_s - computed, self._streamed() - streamed)

    def bare(self) -> _Timed:
        """The same pieces without computing."""
        streamed, started = self._streamed(), time.perf_counter()
        for index in range(self._n_pieces):
            with self._window.hold(index):
                pass
        return _Timed(time.perf_counter() - started, 0.0, self._streamed() - streamed)

    def _streamed(self) -> int:
        return self._window.stats().streamed_bytes


def measure(request: Request) -> Figures:
    """Runs what is asked for; blocks for as many passes."""
    keep_allocator_small()  # as the command line does
    base, started = resident_bytes(), time.perf_counter()
    shard = open_shard(Path(request.shard))
    header, stored = shard.header, stored_from_shard(shard)
    made = model_of(header.spec)
    model = RankModel(header.spec, made.blocks, header.partition, header.rank, shard.pieces, made.inputs)
    settings = RankSettings(
        request.chunk_tokens,
        request.n_cells,
        request.n_threads,
        TYPES_BY_NAME[request.kv_type],
        n_parts=request.n_parts,
    )
    size = int(stored.arena_bytes * request.window_part) if request.window_bytes is None else request.window_bytes
    with ExitStack() as stack:
        workspace = stack.enter_context(Workspace(model, settings))
        way = find_way(stored, size, Path(request.shard + NOTE_SUFFIX))
        window = stack.enter_context(Window(stored, PieceReader(stored, way), size, least_slots=model.least_slots))
        times = RankTimes()
        recorder = _Recorder(times, model.blocks)
        sums = MadeUpSums(header.partition.n_ranks, request.sum_s, recorder.note)
        rank = Rank(workspace, window, sums, times)
        open_s = time.perf_counter() - started
        for block in model.blocks:
            if block.index in workspace.cache:
                workspace.cache.zero(block.index, Span(0, request.n_cells))  # every cell counts as written
        measured = _Measured(rank, window, len(shard.pieces), header.spec.n_embd, request.n_cells)
        started = time.perf_counter()
        for first in range(0, request.n_prefill, request.chunk_tokens):
            measured.run(first, min(request.chunk_tokens, request.n_prefill - first))
        prefill_s, prefill_compute_s = time.perf_counter() - started, times.compute_s
        measured.token()
        pairs = [(measured.token(), measured.bare()) for _ in range(request.n_pairs)]
        stats = window.stats()
        n_streamed = sum(piece.arena_bytes for piece in stored.pieces) - stats.pinned_bytes
        kv_bytes = workspace.kept_bytes
    tokens, bares = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Figures(
        peak_rss_bytes=peak_resident_bytes(),
        base_rss_bytes=base,
        kv_bytes=kv_bytes,
        window_bytes=size,
        pinned_bytes=stats.pinned_bytes,
        shard_bytes=shard.n_bytes,
        streamed_bytes_per_token=n_streamed,
        is_direct=stats.is_direct,
        disk_mode=stats.disk_mode,
        open_s=open_s,
        prefill_tokens=request.n_prefill,
        prefill_s=prefill_s,
        prefill_compute_s=prefill_compute_s,
        token_s=statistics.median(token.wall_s for token in tokens),
        compute_s=statistics.median(token.compute_s for token in tokens),
        bare_pass_s=statistics.median(bare.wall_s for bare in bares),
        disk_bytes_per_s=statistics.median(bare.streamed_bytes / bare.wall_s for bare in bares),
        streaming_bytes_per_s=statistics.median(token.streamed_bytes / token.wall_s for token in tokens),
        rate_ratio=statistics.median(bare.wall_s / token.wall_s for token, bare in pairs),
        time_ratio=statistics.median(token.wall_s / max(bare.wall_s, token.compute_s) for token, bare in pairs),
        computing=recorder.recording(),
    )


if __name__ == "__main__":
    print(msgspec.json.encode(measure(msgspec.json.decode(sys.argv[1], type=Request))).decode())
