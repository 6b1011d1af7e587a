"""One rank of sums without computing, on its emulated device: all algorithms over one mesh, timed.

    python -m bench.sums TASK-AS-JSON

:func:`measure_sums` starts all ranks. They begin every sum at one instant, which they agree on by a file: a rank that
began before the others would hide a part of what its message takes. A sum lasts from the last rank's start to the last
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
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench.children import last_words, module_variables
from bench.testbed.helper import find_program
from bench.testbed.testbed import Testbed
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.arithmetic import Arithmetic, make_arithmetic
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.control.messages import Measured, SumTrial
from tpi.cluster.epoch.measuring import measure_links, try_sums
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.nativemesh import NativeMesh, open_mesh
from tpi.cluster.pairing.addresses import listen
from tpi.cluster.pairing.authority import Authority
from tpi.cluster.pairing.identity import Identity, IdentityStore
from tpi.errors import LinkError
from tpi.model.flow import Flow
from tpi.runtime.protocols import SumStep
from tpi.testing.meshes import enrol

_PORT = 7650
_TIMEOUT_S = 600.0
_INSTANTS = "instants"
_BEGIN_S = 60.0
_WARM_UP = 3
LEAST_ROUNDS = _WARM_UP + 1
"""With which one is counted."""


class SumKind(msgspec.Struct, frozen=True):
    """A way to add ``n_values`` up over all ranks."""

    algorithm: str
    n_values: int
    payload: str = PayloadFormat.F16.value


class SumTask(msgspec.Struct, frozen=True):
    """What one rank does: ``n_rounds`` times one sum of every kind, ``gap_s`` idle before each, and after ``idle_s``
    one more of every kind. ``folder`` has keys. With ``trials`` it measures the links as a cluster does, and tries
    those. ``with_helper``: in C, if that is there."""

    rank: int
    addresses: list[str]
    folder: str
    kinds: list[SumKind]
    n_rounds: int
    gap_s: float
    idle_s: float = 0.0
    trials: list[SumTrial] = []
    width: int = 0
    with_helper: bool = True


class RankTimes(msgspec.Struct, frozen=True):
    """When each sum began and ended on this rank, by kind and round, seconds of the machine's clock; processor time of
    each; and of the trials what a cluster's rank tells."""

    starts_s: list[list[float]]
    ends_s: list[list[float]]
    cpu_s: list[list[float]]
    links: Measured
    tried: Measured


class SumTimes(msgspec.Struct, frozen=True):
    """A kind of sum, over all ranks: median of its wall time, the first after idling, and the processor time of the
    busiest rank."""

    kind: SumKind
    wall_s: float
    first_s: float
    cpu_s: float


class Outcome(msgspec.Struct, frozen=True):
    """Of all kinds; and what every rank has seen of links and trials."""

    sums: list[SumTimes]
    links: list[Measured]
    tried: list[Measured]


def measure_sums(bed: Testbed, kinds: Sequence[SumKind], **options: object) -> Outcome:
    """Times sums of all ``kinds`` over all devices of ``bed``; ``options`` are those of ``SumTask``. Blocks.

    Raises:
        LinkError: a rank failed; its last words.
    """
    n_ranks = len(bed.devices)
    settings: dict[str, Any] = {"n_rounds": 40, "gap_s": 0.02, **options}
    addresses = [bed.address(rank) for rank in range(n_ranks)]
    with tempfile.TemporaryDirectory() as folder:
        authority = Authority.open(Path(folder) / "authority")
        for rank in range(n_ranks):
            enrol(authority, f"device-{rank}", Path(folder) / f"device-{rank}")
        _make_instants(Path(folder), n_ranks, (settings["n_rounds"] + 1) * len(kinds))
        processes = []
        for rank in range(n_ranks):
            task = msgspec.convert(
                {"rank": rank, "addresses": addresses, "folder": folder, "kinds": list(kinds), **settings}, SumTask
            )
            command = [sys.executable, "-m", "bench.sums", msgspec.json.encode(task).decode()]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            processes.append(bed.popen(rank, command, env=module_variables(), text=True, **pipes))
        ranks = [_times_of(process) for process in processes]
    sums = [_summary(kind, number, ranks) for number, kind in enumerate(kinds)]
    return Outcome(sums, [rank.links for rank in ranks], [rank.tried for rank in ranks])


def _make_instants(folder: Path, n_ranks: int, n_sums: int) -> None:
    """Writes the file by which ranks agree when a sum begins: ``float64[n_sums, n_ranks]``, zero until a rank has
    written the instant from which it can begin."""
    np.zeros((n_sums, n_ranks)).tofile(folder / _INSTANTS)


def _wait_for_instant(instants: "np.ndarray[Any, np.dtype[np.float64]]", rank: int, gap_s: float) -> None:
    """Idles ``gap_s`` and until the last rank has done so.

    Args:
        instants: ``float64[n_ranks]`` of this sum, shared by all ranks.

    Raises:
        LinkError: a rank never came.
    """
    instants[rank] = time.monotonic() + gap_s
    deadline = time.monotonic() + _BEGIN_S
    while not instants.all():
        if time.monotonic() > deadline:
            raise LinkError(f"ranks {np.flatnonzero(instants == 0).tolist()} did not begin within {_BEGIN_S:.0f} s")
        time.sleep(1e-3)
    time.sleep(max(0.0, instants.max() - time.monotonic()))


def measure_swap_s(bed: Testbed, n_bytes: int, gap_s: float, n_rounds: int) -> float:
    """What a C program needs to send everybody so much at once, in the clear, and to get it from everybody: the median,
    last start to last end. No sum in one hop can be faster here. Blocks.

    Raises:
        LinkError: a rank failed; its last words.
    """
    n_ranks, program = len(bed.devices), str(find_program("swap"))
    addresses = [bed.address(rank) for rank in range(n_ranks)]
    numbers = [str(number) for number in (n_ranks, n_bytes, max(1, round(gap_s * 1e3)), n_rounds)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    commands = [[program, str(rank), *numbers, *addresses] for rank in range(n_ranks)]
    processes = [bed.popen(rank, command, text=True, **pipes) for rank, command in enumerate(commands)]
    rounds = np.array([_rounds_of(process) for process in processes])
    walls = rounds[:, :, 1].max(axis=0) - rounds[:, :, 0].max(axis=0)
    return float(np.median(walls[_WARM_UP:]))


def _rounds_of(process: "subprocess.Popen[str]") -> list[list[float]]:
    output, words = process.communicate(timeout=_TIMEOUT_S)
    if process.returncode:
        raise LinkError(f"a rank that swaps failed: {last_words(words)}")
    return [[float(word) for word in line.split()] for line in output.splitlines()]


def _summary(kind: SumKind, number: int, ranks: Sequence[RankTimes]) -> SumTimes:
    n_rounds = len(ranks[0].starts_s[number])
    walls = [
        max(rank.ends_s[number][turn] for rank in ranks) - max(rank.starts_s[number][turn] for rank in ranks)
        for turn in range(n_rounds)
    ]
    cpu_s = max(statistics.mean(rank.cpu_s[number][_WARM_UP:-1]) for rank in ranks)
    return SumTimes(kind, statistics.median(walls[_WARM_UP:-1]), walls[-1], cpu_s)


def _times_of(process: "subprocess.Popen[str]") -> RankTimes:
    output, words = process.communicate(timeout=_TIMEOUT_S)
    if process.returncode:
        raise LinkError(f"a rank that adds failed: {last_words(words)}")
    return msgspec.json.decode(output, type=RankTimes)


def run(task: SumTask) -> RankTimes:
    """Links this rank with the others and takes part in all sums."""
    n_ranks = len(task.addresses)
    flow = Flow(0, tuple(range(n_ranks)), tuple(range(n_ranks)), False)
    with ExitStack() as stack:
        mesh = stack.enter_context(open_mesh(task.rank, _link(task), 1, None, task.with_helper))
        arithmetic = make_arithmetic(None, task.with_helper)
        links = measure_links(mesh, n_ranks)
        walls = try_sums(mesh, arithmetic, flow, task.width, task.trials) if task.trials else []
        tried = Measured(1, sums_s=tuple(w for w, _ in walls), cpu_s=tuple(c for _, c in walls))
        sums = {kind: _sums_for(mesh, kind, arithmetic) for kind in task.kinds}
        times = RankTimes(
            [[] for _ in task.kinds],
            [[] for _ in task.kinds],
            [[] for _ in task.kinds],
            Measured(1, links.latencies_s, links.n_bytes, links.exchange_s),
            tried,
        )
        path = Path(task.folder) / _INSTANTS
        shape = (task.n_rounds + 1, len(task.kinds), n_ranks)
        instants = np.memmap(path, np.float64, "r+", shape=shape)
        for turn in range(task.n_rounds + 1):
            gap_s = task.gap_s if turn < task.n_rounds else max(task.idle_s, task.gap_s)
            for number, kind in enumerate(task.kinds):
                begin = functools.partial(_wait_for_instant, instants[turn, number], task.rank, gap_s)
                _add_once(sums[kind], kind, SumStep(turn * 1000 + number, flow), mesh, begin, times, number)
    return times


def _sums_for(mesh: Mesh, kind: SumKind, arithmetic: Arithmetic) -> Sums:
    scale = Scale(PayloadFormat(kind.payload), kind.n_values, arithmetic=arithmetic)
    algorithm = ALGORITHMS[kind.algorithm](mesh, scale)
    sums = Sums(mesh, algorithm)
    sums.use_for_few(algorithm, kind.n_values)
    return sums


def _add_once(
    sums: Sums, kind: SumKind, step: SumStep, mesh: Mesh, begin: Callable[[], None], times: RankTimes, number: int
) -> None:
    """One sum after ``begin``: as a pass of one token runs it, in C if the mesh is."""
    n_ranks = len(step.flow.participants)
    partial = np.full((1, kind.n_values), mesh.rank + 0.5, np.float32)
    total = np.empty((1, kind.n_values), np.float32)
    native = sums.native(step.flow, kind.n_values)
    if native is not None:
        assert isinstance(mesh, NativeMesh)
        payload_type, largest = native.type_of(step.flow)
        start, finish, at = mesh.library.sum_start, mesh.library.sum_finish, native.address
        how = at, step.pass_id, step.flow.block, payload_type, largest, partial.ctypes.data, total.ctypes.data
        begin()
        cpu, started = time.process_time(), time.monotonic()
        result = start(*how, kind.n_values) or finish(at, -1)
        ended, cpu_s = time.monotonic(), time.process_time() - cpu
        assert not result
    else:
        begin()
        cpu, started = time.process_time(), time.monotonic()
        sums.start(step, partial, total)
        sums.finish(step)
        ended, cpu_s = time.monotonic(), time.process_time() - cpu
    times.ends_s[number].append(ended)
    times.cpu_s[number].append(cpu_s)
    times.starts_s[number].append(started)
    assert np.allclose(total, n_ranks**2 / 2, rtol=0.02)


def _link(task: SumTask) -> dict[int, DataLink]:
    """Calls all lower ranks, takes the calls of all higher ones."""
    folder = Path(task.folder)
    fingerprint = Authority.open(folder / "authority").fingerprint
    identity = IdentityStore(folder / f"device-{task.rank}").find(fingerprint, f"device-{task.rank}")
    assert identity is not None
    links: dict[int, DataLink] = {}
    with listen(task.addresses[task.rank], _PORT) as listener:
        listener.settimeout(_TIMEOUT_S)
        for rank in range(task.rank):
            links[rank] = DataLink(_call(identity, task.addresses[rank], task.rank), f"rank {rank}")
        context = identity.server_context()
        for _ in range(task.rank + 1, len(task.addresses)):
            sock = context.wrap_socket(listener.accept()[0], server_side=True)
            rank = sock.recv(1)[0]
            links[rank] = DataLink(sock, f"rank {rank}")
    return links


def _call(identity: Identity, address: str, rank: int) -> ssl.SSLSocket:
    """Calls until somebody listens there."""
    connect = functools.partial(socket.create_connection, (address, _PORT), timeout=_TIMEOUT_S)
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            sock = identity.client_context().wrap_socket(connect())
            sock.sendall(bytes([rank]))
            return sock
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    print(msgspec.json.encode(run(msgspec.json.decode(sys.argv[1], type=SumTask))).decode())
