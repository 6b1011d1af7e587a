"""A device that joins a cluster and computes nothing: its parts of all sums and logits are zeros.

    python -m bench.standins [--state DIR] [--computing FILE] KEY-FILE NAME

With such devices one real rank of a cluster, the master included, runs with all its links and sums on a machine that
could never hold the others. All but the computing is the product's own worker; with ``--computing``, what ``streaming``
recorded of a real rank, it waits as long as that computed before it contributes. Says ``waiting`` when it is about to
read the key. With ``--state`` the device keeps its certificate there and joins once.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.computing import Recording, read_recording
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import HostDevice, RankHost
from tpi.cluster.epoch.preparing import Provision
from tpi.cluster.epoch.rankplan import rank_model, rank_settings
from tpi.cluster.reports import RankStatus
from tpi.cluster.worker import run_worker
from tpi.config import Folders, Resources, WorkerSettings
from tpi.errors import Cancelled
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Allreduce, Float32Array, SumStep
from tpi.runtime.rank import parts_of
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.turns import Turn, first_per_row, turns_of
from tpi.trace import Trace

_MEMORY_BYTES = 1 << 40


class StandIn(RankHost):
    """What a worker has instead of a rank: takes the part of one in every pass, and has no weights."""

    def __init__(self, plan: Plan, device: HostDevice, recording: Recording) -> None:
        self._device, self._recording = device, recording
        self._allow(rank_model(plan), rank_settings(plan, 1))

    def _allow(self, model: RankModel, settings: RankSettings) -> None:
        self._model, self._settings = model, settings
        self._turns = turns_of(model)
        self._first_per_row = first_per_row(model.blocks)
        self._n_head_rows = model.partition.shares[-1][model.rank].first.size
        n_values = settings.max_tokens * model.max_sum_width
        self._nothing, self._total = np.zeros(n_values, np.float32), np.zeros(n_values, np.float32)
        self._sums: Allreduce | None = None
        self._interrupted = threading.Event()
        self._n_passes = 0
        self.trace: Trace | None = None

    def close(self) -> None:
        """Holds nothing."""

    def connect(self, allreduce: Allreduce, count_links: Callable[[], tuple[int, int]]) -> None:
        """See ``RankHost``; so all that follow."""
        self._sums = allreduce

    def disconnect(self) -> None:
        self._sums = None

    def interrupt(self) -> None:
        self._interrupted.set()

    def allow(self) -> None:
        self._interrupted.clear()

    def forget(self) -> None:
        return None

    def trace_to(self, trace: Trace | None) -> None:
        self.trace = trace

    def run(self, work: Pass) -> Float32Array | None:
        parts, n_sampled = parts_of(work.n_tokens, self._settings.n_parts), len(work.sampled)
        under_way: dict[int, SumStep] = {}
        is_narrow = False
        for turn in self._turns:
            if not is_narrow and turn.block.index >= self._first_per_row:
                self._finish_all(under_way)
                parts, is_narrow = parts_of(n_sampled, 1), True
                if not n_sampled:
                    break
            for part in parts:
                self._finish(under_way, part.number)
                self._compute(turn, part.stop - part.start)
                if not (turn.block.is_head or turn.flow.is_own):
                    under_way[part.number] = self._start(work.pass_id, turn, part.number, part.rows)
        self._finish_all(under_way)
        self._n_passes += 1
        return np.zeros((n_sampled, self._n_head_rows), np.float32) if n_sampled and self._n_head_rows else None

    def status(self) -> RankStatus:
        figures: dict[str, object] = dict.fromkeys(RankStatus.__struct_fields__, 0)
        figures |= {"name": self._device.name, "rank": self._model.rank, "disk_mode": "", "doing": "idle"}
        return msgspec.convert(figures | {"n_passes": self._n_passes}, RankStatus)

    def _compute(self, turn: Turn, n_rows: int) -> None:
        if turn.is_held:
            seconds = self._recording.seconds(turn.block.name, n_rows)
            if seconds:
                time.sleep(seconds)
        if self._interrupted.is_set():
            raise Cancelled("the pass was stopped")

    def _start(self, pass_id: int, turn: Turn, number: int, rows: slice) -> SumStep:
        assert self._sums is not None
        step = SumStep(pass_id, turn.flow, number)
        part = slice(rows.start * turn.width, rows.stop * turn.width)
        partial, out = (array[part].reshape(-1, turn.width) for array in (self._nothing, self._total))
        self._sums.start(step, partial if turn.is_held else None, out if turn.is_received else None)
        return step

    def _finish(self, under_way: dict[int, SumStep], number: int) -> None:
        step = under_way.pop(number, None)
        if step is not None:
            assert self._sums is not None
            self._sums.finish(step)

    def _finish_all(self, under_way: dict[int, SumStep]) -> None:
        for number in sorted(under_way):
            self._finish(under_way, number)


def main(arguments: Sequence[str]) -> None:
    """Runs the device until the master ends."""
    parser = argparse.ArgumentParser(prog="bench.standins")
    parser.add_argument("--state", type=Path)
    parser.add_argument("--computing", type=Path)
    parser.add_argument("key_file", type=Path)
    parser.add_argument("name")
    given = parser.parse_args(arguments)
    recording = read_recording(given.computing) if given.computing else Recording()

    def prepare(plan: Plan, device: HostDevice, provision: Provision, before: RankHost | None) -> RankHost:
        return StandIn(plan, device, recording)

    print("waiting", flush=True)
    key = given.key_file.read_text().strip()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.state or Path(temporary)
        folders = Folders(folder, folder, folder)
        settings = WorkerSettings(key, folders, Resources(_MEMORY_BYTES), name=given.name)
        run_worker(settings, lambda event: None, prepare)


if __name__ == "__main__":
    main(sys.argv[1:])
