"""What one rank's memory does over time: :func:`record` runs it in a process of its own and watches from outside.

    python -m bench.timeline PLAY-AS-JSON

is that process. Both sides note the machine's clock. In the process a thread notes the window's state every few
milliseconds, and where phases begin; what it occupies, the caller reads from the kernel.
"""

import functools
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

import tpi.cluster.worker  # noqa: F401 - what a worker loads belongs to what is measured
from bench.children import last_words, module_variables
from bench.streaming import MadeUpSums
from tpi.errors import TpiError
from tpi.model.architectures import model_of
from tpi.native.allocator import keep_allocator_small
from tpi.observe import peak_resident_bytes, resident_bytes
from tpi.runtime.passes import Pass
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.weights.shards.shard import open_shard
from tpi.weights.stored import stored_from_shard
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.window import Window

_RESIDENT_EVERY_S = 0.01
_N_FIELDS = 6


class Play(msgspec.Struct, frozen=True):
    """What the rank does: a prompt in chunks, then tokens. The KV cache is written as far as they reach."""

    shard: str
    window_bytes: int
    n_cells: int = 2048
    n_prefill: int = 512
    chunk_tokens: int = 128
    n_tokens: int = 4
    n_threads: int = 1
    sum_s: float = 0.0
    sample_every_s: float = 0.002


class Phase(msgspec.Struct, frozen=True):
    """Something that begins at ``at_s``."""

    name: str
    at_s: float


class Played(msgspec.Struct, frozen=True):
    """What the process says. ``uses`` are rows of time, pinned, loaded, loading, held, free; bytes."""

    phases: list[Phase]
    uses: list[list[float]]
    peak_rss_bytes: int
    kv_bytes: int
    disk_mode: str


class Timeline(msgspec.Struct, frozen=True):
    """All of it; times are seconds since the process was started, ``resident`` rows of time and bytes."""

    played: Played
    resident: list[list[float]]


def record(play: Play, popen: Callable[..., "subprocess.Popen[str]"] = subprocess.Popen) -> Timeline:
    """Runs ``play`` in a process that ``popen`` starts; blocks until it is over.

    Raises:
        TpiError: the process failed; its last words.
    """
    command = [sys.executable, "-m", "bench.timeline", msgspec.json.encode(play).decode()]
    resident: list[list[float]] = []
    started = time.monotonic()
    pipe = subprocess.PIPE
    with popen(command, env=module_variables(), text=True, stdout=pipe, stderr=pipe) as process:
        outputs: list[str] = []
        reader = threading.Thread(target=lambda: outputs.extend(process.communicate()))
        reader.start()
        while reader.is_alive():
            if n_bytes := resident_bytes(process.pid):
                resident.append([time.monotonic() - started, n_bytes])
            reader.join(_RESIDENT_EVERY_S)
    if process.returncode:
        raise TpiError(f"the measured process failed: {last_words(outputs[1])}")
    played = msgspec.json.decode(outputs[0], type=Played)
    phases = [Phase("start", 0.0), *(Phase(phase.name, phase.at_s - started) for phase in played.phases)]
    uses = [[at - started, *use] for at, *use in played.uses]
    return Timeline(msgspec.structs.replace(played, phases=phases, uses=uses), resident)


def run(play: Play) -> Played:
    """The process itself."""
    keep_allocator_small()  # as the command line does
    phases = [Phase("open", time.monotonic())]
    shard = open_shard(Path(play.shard))
    header, stored = shard.header, stored_from_shard(shard)
    made = model_of(header.spec)
    model = RankModel(header.spec, made.blocks, header.partition, header.rank, shard.pieces, made.inputs)
    with ExitStack() as stack:
        settings = RankSettings(play.chunk_tokens, play.n_cells, play.n_threads)
        workspace = stack.enter_context(Workspace(model, settings))
        reader = PieceReader(stored)
        window = stack.enter_context(Window(stored, reader, play.window_bytes, least_slots=model.least_slots))
        sampler = stack.enter_context(_Sampler(window, play.sample_every_s))
        rank = Rank(workspace, window, MadeUpSums(header.partition.n_ranks, play.sum_s))
        phases.append(Phase("prefill", time.monotonic()))
        for first in range(0, play.n_prefill, play.chunk_tokens):
            rank.run(_pass(first, min(play.chunk_tokens, play.n_prefill - first), header.spec.n_embd))
        for number in range(play.n_tokens):
            phases.append(Phase("decode" if number == 0 else "token", time.monotonic()))
            rank.run(_pass(play.n_prefill + number, 1, header.spec.n_embd))
        phases.append(Phase("end", time.monotonic()))
        kv_bytes = workspace.kept_bytes
        disk_mode = window.stats().disk_mode
    rows = np.frombuffer(sampler.values).reshape(-1, _N_FIELDS)
    return Played(phases, rows.tolist(), peak_resident_bytes(), kv_bytes, disk_mode)


class _Sampler:
    """A thread that notes the state of ``window`` into ``values`` until the ``with`` is left."""

    def __init__(self, window: Window, every_s: float) -> None:
        self.values = array("d")
        self._window, self._every_s = window, every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="bench-sampler")

    def __enter__(self) -> "_Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._is_over.wait(self._every_s):
            use = self._window.use()
            self.values.extend(
                (
                    time.monotonic(),
                    *(use.pinned_bytes, use.loaded_bytes, use.loading_bytes, use.held_bytes, use.free_bytes),
                )
            )


def _pass(first_cell: int, n_tokens: int, n_embd: int) -> Pass:
    """Random embeddings for cells from ``first_cell``, all earlier ones visible."""
    positions = np.arange(first_cell, first_cell + n_tokens)
    return Pass(
        pass_id=first_cell + 1,
        embeddings=_embeddings(n_tokens, n_embd),
        positions=positions.astype(np.int32),
        cells=positions.astype(np.int64),
        visible=np.arange(first_cell + n_tokens)[None, :] <= positions[:, None],
        sampled=np.array([n_tokens - 1], np.int32),
    )


@functools.cache
def _embeddings(n_tokens: int, n_embd: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((n_tokens, n_embd), np.float32)


if __name__ == "__main__":
    print(msgspec.json.encode(run(msgspec.json.decode(sys.argv[1], type=Play))).decode())
