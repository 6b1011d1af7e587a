"""Links and sums, measured on all ranks at once: every pair meets, alone, and times are what clocks say."""

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from tests.unit.cluster.mesh.content import LIMIT_S
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.arithmetic import make_arithmetic
from tpi.cluster.control.messages import Measured, SumTrial
from tpi.cluster.epoch import measuring
from tpi.cluster.epoch.choosing import network_of
from tpi.cluster.epoch.measuring import LinkTimes, _partners, measure_links, trials_limit_s, trials_limited, try_sums
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.mesh import Mesh
from tpi.errors import LinkError, LinkTimeoutError
from tpi.model.flow import Flow
from tpi.testing.allreduce_suite import on_all_ranks
from tpi.testing.meshes import EPOCH, open_meshes, socket_pair

WIDTH = 96


def ticking(step_s: float) -> Callable[[], float]:
    """A clock that is so much further at every look."""
    numbers = itertools.count()
    return lambda: next(numbers) * step_s


def measure_all(meshes: Sequence[Mesh], step_s: float | None = None) -> list[LinkTimes]:
    found: dict[int, LinkTimes] = {}

    def work(rank: int) -> None:
        clock = {} if step_s is None else {"clock": ticking(step_s * (rank + 1))}
        found[rank] = measure_links(meshes[rank], len(meshes), **clock)

    for error in on_all_ranks(work, len(meshes)):
        if error is not None:
            raise error
    return [found[rank] for rank in range(len(meshes))]


@pytest.mark.parametrize("n_ranks", range(2, 13))
def test_every_two_meet_once_and_rounds_are_disjoint(n_ranks: int) -> None:
    rounds = list(zip(*(_partners(rank, n_ranks) for rank in range(n_ranks)), strict=True))
    assert len(rounds) == n_ranks - 1 + n_ranks % 2
    met: list[tuple[int, int]] = []
    for partners in rounds:
        for rank, partner in enumerate(partners):
            assert partner != rank
            if partner < n_ranks:
                assert partners[partner] == rank, "both meet each other in the same round"
                met += [(rank, partner)] if rank < partner else []
    assert sorted(met) == list(itertools.combinations(range(n_ranks), 2))


def test_who_is_alone_meets_nobody() -> None:
    assert [partner for partner in _partners(0, 1) if partner < 1] == []


@pytest.mark.parametrize("with_helper", [True, False], ids=["C", "python"])
@pytest.mark.parametrize("n_ranks", [2, 3, 4, 7])
def test_every_pair_is_measured_by_one_of_the_two(n_ranks: int, with_helper: bool) -> None:
    with open_meshes(n_ranks, with_helper=with_helper) as meshes:
        found = measure_all(meshes)
    for rank, times in enumerate(found):
        assert len(times.latencies_s) == n_ranks
        for other, latency_s in enumerate(times.latencies_s):
            assert (0 < latency_s < LIMIT_S) if rank < other else latency_s == 0
        assert 0 < times.exchange_s < LIMIT_S and times.n_bytes == 64 << 10


def test_times_are_what_the_clock_says() -> None:
    """It is looked at before and after; of a way there and back half is one way."""
    with open_meshes(3) as meshes:
        found = measure_all(meshes, 0.002)
    assert [times.latencies_s for times in found] == [
        pytest.approx((0.0, 0.001, 0.001)),
        pytest.approx((0.0, 0.0, 0.002)),
        (0.0, 0.0, 0.0),
    ]
    assert [times.exchange_s for times in found] == pytest.approx([0.002, 0.004, 0.006])
    network = network_of([Measured(1, one.latencies_s, one.n_bytes, one.exchange_s) for one in found], 3)
    assert network.latency_s == pytest.approx(0.002)
    assert network.bytes_per_s == pytest.approx(2 * (64 << 10) / 0.004)


def test_pairs_without_a_link_are_left_out() -> None:
    """Workers that not even the master joins: both leave their round out, and nobody waits for them."""
    ends = {pair: socket_pair() for pair in ((0, 1), (0, 2))}
    links = [
        {other: DataLink(ends[0, other][0], f"rank {other}") for other in (1, 2)},
        {0: DataLink(ends[0, 1][1], "rank 0")},
        {0: DataLink(ends[0, 2][1], "rank 0")},
    ]
    meshes = [Mesh(rank, own, EPOCH) for rank, own in enumerate(links)]
    found = measure_all(meshes)
    assert [[latency > 0 for latency in times.latencies_s] for times in found] == [
        [False, True, True],
        [False] * 3,
        [False] * 3,
    ]
    for mesh in meshes:
        mesh.close()


def test_sums_are_tried_over_links_that_were_measured() -> None:
    """As when an epoch is opened: nothing of the one is left for the other."""
    with open_meshes(3) as meshes:
        measure_all(meshes)
        before = [mesh.counts() for mesh in meshes]
        tried(meshes, Flow(0, (0, 1, 2), (0, 1, 2), False), [SumTrial("one-shot", "f32", 1, 2)])
        n_bytes = 3 * 2 * (32 + 4 * WIDTH)  # three rounds, to two ranks
        assert [
            (now[0] - was[0], now[1] - was[1])
            for now, was in zip((mesh.counts() for mesh in meshes), before, strict=True)
        ] == [(n_bytes, n_bytes)] * 3


def test_who_does_not_take_part_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "LIMIT_S", 0.05)
    with open_meshes(2) as meshes, pytest.raises(LinkTimeoutError, match=r"rank 1 did not answer within 0\.05 s"):
        measure_links(meshes[0], 2)


def test_a_peer_that_is_lost_ends_it() -> None:
    with open_meshes(3) as meshes:
        threading.Timer(0.05, meshes[2].close).start()
        with pytest.raises(LinkError, match=r"rank 2 closed the data link|the data link to rank 2 broke"):
            measure_links(meshes[0], 3)


def tried(
    meshes: Sequence[Mesh], flow: Flow, trials: Sequence[SumTrial], step_s: float | None = None
) -> list[list[tuple[float, float]]]:
    found: dict[int, list[tuple[float, float]]] = {}

    def work(rank: int) -> None:
        clock = {} if step_s is None else {"clock": ticking(step_s)}
        found[rank] = try_sums(meshes[rank], make_arithmetic(), flow, WIDTH, trials, **clock)

    for error in on_all_ranks(work, len(meshes)):
        if error is not None:
            raise error
    return [found[rank] for rank in range(len(meshes))]


TRIALS = [
    SumTrial(name, payload, n_tokens, n_rounds)
    for n_rounds, name in enumerate(ALGORITHMS, start=2)
    for payload in ("f32", "f16", "int8")
    for n_tokens in (1, 40)
]


@pytest.mark.parametrize("with_helper", [True, False], ids=["C", "python"])
def test_every_way_is_tried_on_every_rank(with_helper: bool) -> None:
    with open_meshes(3, with_helper=with_helper) as meshes:
        found = tried(meshes, Flow(1, (0, 1, 2), (0, 1, 2), False), TRIALS)
    for results in found:
        assert len(results) == len(TRIALS)
        assert all(0 < wall_s < LIMIT_S and 0 <= cpu_s < LIMIT_S for wall_s, cpu_s in results)


@pytest.mark.parametrize(
    ("contributors", "receivers"), [((0, 1), (0, 1)), ((1, 2), (0, 1)), ((2,), (0,)), ((0, 1, 2), (1,))]
)
def test_who_takes_no_part_waits_for_nobody(contributors: tuple[int, ...], receivers: tuple[int, ...]) -> None:
    flow = Flow(1, contributors, receivers, False)
    trials = [SumTrial(name, "f16", 2, 2) for name in ALGORITHMS]
    with open_meshes(3) as meshes:
        for rank, results in enumerate(tried(meshes, flow, trials)):
            assert (np.array([wall_s for wall_s, _ in results]) > 0).all() == (rank in flow.participants)


def test_a_trial_takes_what_its_rounds_take() -> None:
    """A clock that is a second further at every look: every round takes one."""
    with open_meshes(2) as meshes:
        found = tried(meshes, Flow(1, (0, 1), (0, 1), False), [SumTrial("star", "f16", 1, 5)], 1.0)
    assert [results[0][0] for results in found] == [1.0, 1.0]


def test_small_sums_take_turns_and_large_ones_do_not() -> None:
    small, large = SumTrial("star", "f16", 1, 2), SumTrial("star", "f16", 128, 2)
    assert list(measuring._in_turns([small, large, small, large], 1024)) == [[0, 2], [1], [3]]
    assert list(measuring._in_turns([large], 1024)) == [[0]]


def test_rounds_that_were_disturbed_do_not_count() -> None:
    """Two blocks of four; the first round of each is not timed; three of the others took a hundred times as long."""
    times = iter([0.0, 0, 1, 0, 100, 0, 100, 0, 0, 1, 0, 1, 0, 100])
    with open_meshes(1) as meshes:
        trial = measuring._Trial(
            meshes[0], make_arithmetic(), Flow(1, (0,), (0,), False), WIDTH, 0, SumTrial("star", "f16", 1, 6)
        )
        for _ in range(2):
            trial.run(2, lambda: next(times))
    assert next(times, None) is None and trial.result()[0] == 1


def test_a_peer_that_is_lost_ends_the_trials() -> None:
    with open_meshes(2) as meshes:
        threading.Timer(0.05, meshes[1].close).start()
        with pytest.raises(LinkError, match=r"rank 1 closed the data link|the data link to rank 1 broke"):
            try_sums(meshes[0], make_arithmetic(), Flow(1, (0, 1), (0, 1), False), WIDTH, TRIALS)


@pytest.mark.parametrize("with_helper", [True, False], ids=["C", "python"])
def test_a_worker_that_hangs_ends_the_trials(with_helper: bool) -> None:
    """Its links live, and nothing comes."""
    flow = Flow(1, (0, 1), (0, 1), False)
    said = r"^pi \(rank 1\) did not get through the trials of sums within 0\.1 s: is it busy"
    with (
        open_meshes(2, with_helper=with_helper) as meshes,
        pytest.raises(LinkTimeoutError, match=said),
        trials_limited(meshes[0], 0.1, ["pi (rank 1)"]),
    ):
        try_sums(meshes[0], make_arithmetic(None, with_helper), flow, WIDTH, TRIALS)


def test_trials_over_slow_links_have_more_time() -> None:
    trial = SumTrial("star", "f16", 512, 2)
    assert trials_limit_s([(trial, 0.0)]) == measuring.LIMIT_S
    assert trials_limit_s([(trial, 3.0)] * 2) > measuring.LIMIT_S + 2 * 3.0 * 8


def test_no_two_trials_have_rounds_of_one_number() -> None:
    assert -(-1000 // measuring._BLOCKS) * measuring._BLOCKS + measuring._BLOCKS < measuring._ROUNDS_APART
