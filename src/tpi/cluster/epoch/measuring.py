"""What the links of an epoch can do, and how long sums take over them: tried on all ranks at once.

Every rank runs the same functions at the same time; each tells what it has seen. Blocks its caller, for some hundredths
of a second on a home network.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALL_ALGORITHMS
from tpi.cluster.allreduce.arithmetic import Arithmetic
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat, staggered
from tpi.cluster.control.messages import Measure, Measured, Plan, SumTrial
from tpi.cluster.mesh.datalink import Exchange, Incoming
from tpi.cluster.mesh.frames import NO_BLOCK, FrameBuffer, FrameTag, PayloadType, Phase
from tpi.cluster.mesh.mesh import Mesh, Sources, Targets
from tpi.errors import LinkTimeoutError, ProtocolError
from tpi.model.architectures import blocks_of
from tpi.model.flow import Flow, flows_that_travel, typical_flow
from tpi.runtime.protocols import SumStep

LIMIT_S = 20.0
"""For each wait while links are measured; far more than any of them takes on a link that works."""
_SLOWER = 10.0
"""So many times slower than foretold trials may be."""
_PINGS, _WARM_UP_PINGS = 7, 2
_PING_BYTES = 8
_FIRST_EXCHANGE_BYTES, _EXCHANGE_BYTES = 16 << 10, 64 << 10
"""The first opens TCP's windows."""
_SMALL_VALUES = 1 << 16
"""Of sums whose buffers fit side by side into a worker's memory."""
_BLOCKS = 6
"""Of rounds, between which other trials run."""
_PASS_OF_TRIALS = 1 << 63
"""Numbers of passes that never come."""
_ROUNDS_APART = 1 << 12
"""More than a trial has rounds."""


@dataclass(frozen=True)
class LinkTimes:
    """One rank's view: one-way latency to every rank in seconds, 0 without a link; seconds that it took to exchange
    ``n_bytes`` with every peer at once."""

    latencies_s: tuple[float, ...]
    n_bytes: int
    exchange_s: float


def tried_flow(plan: Plan) -> Flow | None:
    """The flow over which ways to add up are tried; None if nothing is added."""
    return typical_flow(flows_that_travel(blocks_of(plan.spec), plan.partition))


def measure(mesh: Mesh, plan: Plan, message: Measure, arithmetic: Arithmetic) -> Measured:
    """What this rank sees of what the master wants measured: the trials of sums that are named, or else the links.

    Raises:
        LinkError: a peer is lost.
        ProtocolError: sums are to be tried where nothing is added.
    """
    if not message.trials:
        times = measure_links(mesh, plan.partition.n_ranks)
        return Measured(plan.epoch, times.latencies_s, times.n_bytes, times.exchange_s)
    flow = tried_flow(plan)
    if flow is None:
        raise ProtocolError("the master wants sums tried, and nothing is to be added")
    tried = try_sums(mesh, arithmetic, flow, plan.spec.n_embd, message.trials)
    walls, cpus = tuple(wall_s for wall_s, _ in tried), tuple(cpu_s for _, cpu_s in tried)
    return Measured(plan.epoch, sums_s=walls, cpu_s=cpus)


def measure_links(mesh: Mesh, n_ranks: int, clock: Callable[[], float] = time.perf_counter) -> LinkTimes:
    """Measures latency in disjoint pairs, then what everybody can exchange with everybody at once.

    Raises:
        LinkError: a peer is lost, or took more than ``LIMIT_S``.
    """
    probe = _Probe(mesh)
    latencies = [0.0] * n_ranks
    for number, partner in enumerate(_partners(mesh.rank, n_ranks)):
        if partner in mesh.peers:
            latencies[partner] = probe.ping(partner, number, clock)
    for number, n_bytes in enumerate((_FIRST_EXCHANGE_BYTES, _EXCHANGE_BYTES), start=n_ranks):
        probe.meet(number * 2)
        started = clock()
        probe.exchange(number * 2 + 1, n_bytes)
        exchange_s = clock() - started
    return LinkTimes(tuple(latencies), _EXCHANGE_BYTES, exchange_s)


def try_sums(
    mesh: Mesh,
    arithmetic: Arithmetic,
    flow: Flow,
    width: int,
    trials: Sequence[SumTrial],
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:
    """Seconds of wall and processor time that a sum of each trial takes on this rank: lower quartiles and means of its
    rounds. Small sums take turns, a few rounds each, so that what disturbs some rounds disturbs all trials. Zeros on a
    rank that takes no part in ``flow``.

    Raises:
        LinkError: a peer is lost.
    """
    results = [(0.0, 0.0)] * len(trials)
    for numbers in _in_turns(trials, width):
        running = [_Trial(mesh, arithmetic, flow, width, number, trials[number]) for number in numbers]
        if mesh.rank not in flow.participants:
            continue
        n_blocks = _BLOCKS if len(running) > 1 else 1
        for _ in range(n_blocks):
            for trial in running:
                trial.run(n_blocks, clock)
        for trial in running:
            results[trial.number] = trial.result()
    return results


def trials_limit_s(trials: Iterable[tuple[SumTrial, float]]) -> float:
    """After how many seconds trials are given up; of each it is foretold how long a sum takes."""
    rounds_s = sum((trial.n_rounds + 2 * _BLOCKS) * foretold_s for trial, foretold_s in trials)
    return LIMIT_S + _SLOWER * rounds_s


@contextmanager
def trials_limited(mesh: Mesh, limit_s: float, names: Sequence[str]) -> Iterator[None]:
    """Shuts the mesh down if it takes longer: a worker may hang whose control link lives. ``names`` are the workers."""
    who = f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    late = LinkTimeoutError(
        f"{who} did not get through the trials of sums within {limit_s:.3g} s: is it busy with other things?"
    )
    timer = threading.Timer(limit_s, mesh.shut_down, (late,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _in_turns(trials: Sequence[SumTrial], width: int) -> Iterator[list[int]]:
    """The trials' numbers, together those that are tried in turns."""
    small = [number for number, trial in enumerate(trials) if trial.n_tokens * width <= _SMALL_VALUES]
    if small:
        yield small
    yield from ([number] for number in range(len(trials)) if number not in small)


class _Trial:
    """Sums of one kind, of zeros."""

    def __init__(
        self, mesh: Mesh, arithmetic: Arithmetic, flow: Flow, width: int, number: int, trial: SumTrial
    ) -> None:
        """On all ranks: some algorithms are made together."""
        self.number, self._n_rounds = number, trial.n_rounds
        self._flow = flow
        shape, n_values = (trial.n_tokens, width), trial.n_tokens * width
        scale = Scale(PayloadFormat(trial.payload), n_values, arithmetic=arithmetic)
        algorithm = ALL_ALGORITHMS[trial.algorithm](mesh, scale)
        self._sums = Sums(mesh, algorithm)
        self._sums.use_for_few(algorithm, n_values)
        self._partial = np.zeros(shape, np.float32) if mesh.rank in flow.contributors else None
        self._out = np.empty(shape, np.float32) if mesh.rank in flow.receivers else None
        self._n_run = 0
        self._walls: list[float] = []
        self._cpu_s = 0.0

    def run(self, n_blocks: int, clock: Callable[[], float]) -> None:
        """One block of rounds of so many. Its first is not timed: one kind of sum leaves the ranks further apart than
        another."""
        for turn in range(-(-self._n_rounds // n_blocks) + 1):
            step = SumStep(_PASS_OF_TRIALS + self.number * _ROUNDS_APART + self._n_run, self._flow)
            self._n_run += 1
            cpu_started, started = time.thread_time(), clock()
            self._sums.start(step, self._partial, self._out)
            self._sums.finish(step)
            if turn:
                self._walls.append(clock() - started)
                self._cpu_s += time.thread_time() - cpu_started

    def result(self) -> tuple[float, float]:
        """Wall and processor time."""
        return sorted(self._walls)[len(self._walls) // 4], self._cpu_s / len(self._walls)


class _Probe:
    """Sends and receives frames without meaning."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._out = FrameBuffer(_EXCHANGE_BYTES)
        self._incoming = {rank: Incoming(FrameBuffer(_EXCHANGE_BYTES)) for rank in mesh.peers}
        self._everybody = mesh.targets(staggered(mesh.peers, mesh.rank)), mesh.sources(self._incoming)

    def ping(self, partner: int, number: int, clock: Callable[[], float]) -> float:
        """One-way latency: half of the median time there and back."""
        is_first, times = self._mesh.rank < partner, []
        target, source = self._mesh.targets([partner]), self._mesh.sources({partner: self._incoming[partner]})
        for turn in range(_PINGS):
            key = self._key(number, turn)
            started = clock()
            if is_first:
                self._send(target, key)
            self._receive(source, key)
            if not is_first:
                self._send(target, key)
            times.append(clock() - started)
        if is_first:
            return statistics.median(times[_WARM_UP_PINGS:]) / 2
        return 0.0

    def meet(self, number: int) -> None:
        """Returns when everybody has called it."""
        self.exchange(number, 0)

    def exchange(self, number: int, n_bytes: int) -> None:
        """Sends so much to every peer, and receives as much from each."""
        key, exchange = self._key(number, 0), Exchange()
        targets, sources = self._everybody
        self._out.seal(key, PayloadType.BYTES, n_bytes)
        self._mesh.expect(sources, key, exchange)
        self._mesh.send(targets, self._out, exchange)
        self._mesh.wait(exchange, LIMIT_S)

    def _send(self, targets: Targets, key: bytes) -> None:
        exchange = Exchange()
        self._out.seal(key, PayloadType.BYTES, _PING_BYTES)
        self._mesh.send(targets, self._out, exchange)
        self._mesh.wait(exchange, LIMIT_S)

    def _receive(self, sources: Sources, key: bytes) -> None:
        exchange = Exchange()
        self._mesh.expect(sources, key, exchange)
        self._mesh.wait(exchange, LIMIT_S)

    def _key(self, number: int, turn: int) -> bytes:
        return FrameTag(number << 8 | turn, NO_BLOCK, Phase.PROBE).key(self._mesh.epoch)


def _partners(rank: int, n_ranks: int) -> Iterator[int]:
    """Whom ``rank`` meets in each round, so that every two meet once and all pairs of a round are disjoint (the circle
    method of tournaments); a number from ``n_ranks`` on: nobody."""
    n = n_ranks + n_ranks % 2
    for turn in range(n - 1):
        # In this round r meets 2·turn - r; who would meet itself, which is turn, meets the last one.
        partner = turn if rank == n - 1 else (2 * turn - rank) % (n - 1)
        yield n - 1 if partner == rank else partner
