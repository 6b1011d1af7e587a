"""How long a sum over all ranks takes on emulated devices, by the star that clusters use, over TLS, without computing.

    python -m bench.sums TASK-AS-JSON

is one rank on its device; :func:`measure_sums` starts them all. A sum lasts from the last rank's start to the last
rank's end: devices of one machine share its clock.
"""

import functools
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from bench.children import last_words, module_variables
from bench.testbed.testbed import Testbed
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.allreduce.star import StarMaster, StarWorker
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority
from tpi.cluster.pairing.identity import IdentityStore
from tpi.errors import LinkError
from tpi.runtime.protocols import Allreduce, SumStep
from tpi.testing.links import enrol

_PORT = 7650
_TIMEOUT_S = 120.0
_WARM_UP = 3


class SumTask(msgspec.Struct, frozen=True):
    """What one rank does: for each of ``sizes`` (values) ``n_rounds`` sums, ``gap_s`` apart. ``folder`` has keys."""

    rank: int
    n_ranks: int
    folder: str
    address: str
    sizes: list[int]
    n_rounds: int
    gap_s: float
    payload: str = PayloadFormat.F16.value


class SumTimes(msgspec.Struct, frozen=True):
    """When each sum began and ended on this rank, by size and round; seconds of the machine's clock."""

    starts_s: list[list[float]]
    ends_s: list[list[float]]


def measure_sums(bed: Testbed, sizes: Sequence[int], n_rounds: int = 40, gap_s: float = 0.02) -> list[float]:
    """Medians, in seconds, for sums of so many values in 16 bits over all devices of ``bed``. Blocks.

    Raises:
        LinkError: a rank failed; its last words.
    """
    n_ranks = len(bed.devices)
    variables = module_variables()
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.open(Path(folder) / "authority")
        for rank in range(1, n_ranks):
            enrol(authority, f"device-{rank}", Path(folder) / f"device-{rank}")
        processes = []
        for rank in range(n_ranks):
            task = SumTask(rank, n_ranks, folder, bed.address(0), list(sizes), n_rounds, gap_s)
            command = [sys.executable, "-m", "bench.sums", msgspec.json.encode(task).decode()]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            processes.append(bed.popen(rank, command, env=variables, text=True, **pipes))
        ranks = [_times_of(process) for process in processes]
    return [
        statistics.median(
            max(rank.ends_s[size][number] for rank in ranks) - max(rank.starts_s[size][number] for rank in ranks)
            for number in range(_WARM_UP, n_rounds)
        )
        for size in range(len(sizes))
    ]


def _times_of(process: "subprocess.Popen[str]") -> SumTimes:
    output, words = process.communicate(timeout=_TIMEOUT_S)
    if process.returncode:
        raise LinkError(f"a rank that adds failed: {last_words(words)}")
    return msgspec.json.decode(output, type=SumTimes)


def run(task: SumTask) -> SumTimes:
    """Links this rank with the others and takes part in all sums."""
    with ExitStack() as stack:
        end = _link_master(task, stack) if task.rank == 0 else _link_worker(task, stack)
        times = SumTimes([], [])
        for number, size in enumerate(task.sizes):
            partial, total = np.full((1, size), task.rank + 0.5, np.float32), np.empty((1, size), np.float32)
            times.starts_s.append([])
            times.ends_s.append([])
            for _ in range(task.n_rounds):
                time.sleep(task.gap_s)
                times.starts_s[-1].append(time.monotonic())
                end.sum(SumStep(number + 1, 0, tuple(range(task.n_ranks))), partial, total)
                times.ends_s[-1].append(time.monotonic())
        assert np.all(total == task.n_ranks**2 / 2)
    return times


def _link_master(task: SumTask, stack: ExitStack) -> Allreduce:
    context = Authority.open(Path(task.folder) / "authority").server_context()
    links: dict[int, DataLink] = {}
    with listen(task.address, _PORT) as listener:
        listener.settimeout(_TIMEOUT_S)
        while len(links) < task.n_ranks - 1:
            sock = context.wrap_socket(listener.accept()[0], server_side=True)
            rank = sock.recv(1)[0]
            links[rank] = stack.enter_context(DataLink(sock, f"rank {rank}", epoch=1))
    return StarMaster(links, PayloadFormat(task.payload), max(task.sizes))


def _link_worker(task: SumTask, stack: ExitStack) -> Allreduce:
    folder = Path(task.folder)
    fingerprint = Authority.open(folder / "authority").fingerprint
    identity = IdentityStore(folder / f"device-{task.rank}").find(fingerprint)
    assert identity is not None
    sock = _connect(identity.client_context(), task.address)
    sock.sendall(bytes([task.rank]))
    link = stack.enter_context(DataLink(sock, "the master", epoch=1))
    return StarWorker(task.rank, link, PayloadFormat(task.payload), max(task.sizes))


def _connect(context: ssl.SSLContext, address: str) -> ssl.SSLSocket:
    """Calls until the master listens."""
    connect = functools.partial(socket.create_connection, (address, _PORT), timeout=_TIMEOUT_S)
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return context.wrap_socket(connect())
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    print(msgspec.json.encode(run(msgspec.json.decode(sys.argv[1], type=SumTask))).decode())
