"""What a way to add up would cost, which are tried, and which of them is taken."""

from math import ceil, log2
from typing import Any

import pytest

from tests.unit.model.specs import make_spec
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.control.messages import Measured, Plan, SumTrial
from tpi.cluster.epoch import choosing
from tpi.cluster.epoch.choosing import Network, choose, formats_of, network_of, predict_s, trials_of, ways
from tpi.cluster.mesh.frames import HEADER_BYTES
from tpi.cluster.reports import SumWay
from tpi.model.architectures import blocks_of
from tpi.model.flow import Flow
from tpi.model.partition import divide
from tpi.model.spec import ModelSpec

SPEC = make_spec()
SLOW = Network(latency_s=0.01, bytes_per_s=1e9)
NARROW = Network(latency_s=1e-5, bytes_per_s=1e6)


def plan(n_ranks: int, payload: str = "f16", max_tokens: int = 128, spec: ModelSpec = SPEC) -> Plan:
    partition = divide(blocks_of(spec), [1] * n_ranks)
    return Plan(1, 0, spec, partition, 512, max_tokens, 8, payload, "F16", n_parts=2)


def flow(n_ranks: int) -> Flow:
    everybody = tuple(range(n_ranks))
    return Flow(0, everybody, everybody, False)


def tried(n_ranks: int, network: Network, **changes: Any) -> dict[int, list[SumWay]]:
    values: dict[str, Any] = {"wanted": None, "is_complete": True, "few_tokens": 8} | changes
    payload, spec = values.pop("payload", "f16"), values.pop("spec", SPEC)
    return ways(plan(n_ranks, payload, spec=spec), flow(n_ranks), network, **values)


def names(found: list[SumWay]) -> set[tuple[str, str]]:
    return {(way.algorithm, way.payload) for way in found}


FORMULAS = {
    "star": lambda n, t, s, b: 2 * t + n * s / b,
    "one-shot": lambda n, t, s, b: t + (n - 1) * s / b,
    "two-shot": lambda n, t, s, b: 2 * t + 2 * (n - 1) * s / (n * b),
    "ring": lambda n, t, s, b: 2 * (n - 1) * (t + s / (n * b)),
    "tree": lambda n, t, s, b: 2 * ceil(log2(n)) * (t + s / b),
}
"""As the algorithms' files say: number of ranks, latency, payload, rate of a port."""


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("n_ranks", [2, 3, 4, 5, 8])
def test_predictions_are_the_formulas_of_the_files(algorithm: str, n_ranks: int) -> None:
    """And, for every message, its processor time, and on average half a header in each direction."""
    for network in (SLOW, NARROW):
        for n_bytes in (0.0, 8192.0, 1e6):
            n_messages = ALGORITHMS[algorithm].cost(n_ranks).n_messages
            extra = n_messages * (choosing._MESSAGE_S + HEADER_BYTES / 2 / network.bytes_per_s)
            expected = FORMULAS[algorithm](n_ranks, network.latency_s, n_bytes, network.bytes_per_s)
            assert predict_s(algorithm, n_ranks, n_bytes, network) == pytest.approx(expected + extra)


def test_no_algorithm_is_without_a_formula() -> None:
    assert FORMULAS.keys() == ALGORITHMS.keys()


def test_two_ranks_swap_at_once() -> None:
    """Of two ranks each sends to the other in one hop: nothing is faster."""
    for network in (SLOW, NARROW):
        costs = {name: predict_s(name, 2, 8192.0, network) for name in ALGORITHMS}
        assert min(costs, key=lambda name: costs[name]) == "one-shot"


def test_what_the_links_are_worth() -> None:
    """The largest latency; the rate while all send to all, on the slowest rank, without the way there."""
    measured = [
        Measured(1, (0.0, 0.003, 0.001), 65536, 0.05),
        Measured(1, (0.0, 0.0, 0.002), 65536, 0.103),
        Measured(1, (0.0, 0.0, 0.0), 65536, 0.02),
    ]
    network = network_of(measured, 3)
    assert network.latency_s == 0.003
    assert network.bytes_per_s == pytest.approx(2 * 65536 / 0.1)


def test_links_without_a_latency_or_faster_than_the_clock() -> None:
    network = network_of([Measured(1, (0.0, 0.0), 65536, 0.0)] * 2, 2)
    assert network == Network(0.0, 65536 / 1e-6)


def test_all_that_are_ever_best_are_tried() -> None:
    found = tried(2, SLOW)
    assert found.keys() == {1, 64}, "one row, and half a pass"
    assert names(found[1]) == names(found[64]) == {("star", "f16"), ("one-shot", "f16"), ("two-shot", "f16")}
    for candidates in found.values():
        predicted = [way.predicted_s for way in candidates]
        assert predicted == sorted(predicted)
    assert found[1][0].predicted_s == predict_s("one-shot", 2, 2 * SPEC.n_embd, SLOW)
    assert found[64][0].predicted_s == predict_s("one-shot", 2, 64 * 2 * SPEC.n_embd, SLOW)


def test_what_needs_more_memory_than_is_planned_is_not_tried_for_many_rows() -> None:
    """One-shot keeps every other rank's rows."""
    found = tried(5, NARROW, spec=make_spec(n_embd=1024))
    assert ("one-shot", "f16") in names(found[1]) and ("one-shot", "f16") not in names(found[64])
    assert names(found[64]) == {("star", "f16"), ("two-shot", "f16")}


@pytest.mark.parametrize("n_embd", [32, 256, 8192])
@pytest.mark.parametrize("wanted", [None, *ALGORITHMS])
def test_something_is_always_tried(n_embd: int, wanted: str | None) -> None:
    for n_ranks in range(2, 9):
        for is_complete in (True, False):
            found = tried(n_ranks, SLOW, spec=make_spec(n_embd=n_embd), wanted=wanted, is_complete=is_complete)
            assert found.keys() == {1, 64} and all(found.values())


def test_only_the_star_does_without_links_between_workers() -> None:
    for wanted in (None, "ring", "star"):
        found = tried(5, NARROW, is_complete=False, wanted=wanted)
        assert names(found[1]) == names(found[64]) == {("star", "f16")}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_one_that_was_asked_for_is_the_only_one(algorithm: str) -> None:
    found = tried(5, NARROW, wanted=algorithm)
    assert names(found[1]) == names(found[64]) == {(algorithm, "f16")}


def test_where_int8_is_allowed_f16_is_tried_too() -> None:
    found = tried(2, NARROW, payload="int8", wanted="star")
    assert names(found[1]) == names(found[64]) == {("star", "int8"), ("star", "f16")}
    assert found[64][0].payload == "int8", "it has fewer bytes"
    assert len(tried(2, NARROW, payload="int8")[1]) == 3, "no more than three are tried"
    assert [[entry.value for entry in formats_of(name)] for name in ("f32", "f16", "int8")] == [
        ["f32"], ["f16"], ["int8", "f16"]
    ]  # fmt: skip


def test_passes_of_one_token_need_one_choice() -> None:
    found = ways(plan(2, max_tokens=1), flow(2), SLOW, None, True, 8)
    assert found.keys() == {1}


def way(name: str, n_tokens: int, predicted_s: float) -> SumWay:
    return SumWay(name, "f16", n_tokens, predicted_s)


CANDIDATES = {
    1: [way("one-shot", 1, 0.001), way("star", 1, 0.002)],
    64: [way("two-shot", 64, 0.01), way("star", 64, 0.2)],
}


def test_trials_are_as_many_as_time_allows() -> None:
    trials = trials_of(CANDIDATES)
    assert trials == [
        SumTrial("one-shot", "f16", 1, 24),
        SumTrial("star", "f16", 1, 24),
        SumTrial("two-shot", "f16", 64, 7),
        SumTrial("star", "f16", 64, 2),
    ]
    assert [trial.n_rounds for trial in trials_of({1: [way("star", 1, 0.0), way("ring", 1, 1e9)]})] == [24, 2]


def test_the_fastest_on_the_slowest_rank_is_taken() -> None:
    """One-shot is faster on most ranks, star on the slowest; a rank that takes no part has no times, or zeros."""
    measured = [
        Measured(1, sums_s=(0.001, 0.003, 0.02, 0.05)),
        Measured(1, sums_s=(0.009, 0.004, 0.03, 0.01)),
        Measured(1, sums_s=(0.0, 0.0, 0.0, 0.0)),
        Measured(1),
    ]
    choice = choose(CANDIDATES, measured, NARROW, 8)
    assert (choice.few.algorithm, choice.few.measured_s, choice.few.predicted_s) == ("star", 0.004, 0.002)
    assert (choice.many.algorithm, choice.many.measured_s) == ("two-shot", 0.03)
    assert (choice.max_few_tokens, choice.latency_s, choice.bytes_per_s) == (8, 1e-5, 1e6)
    assert [entry.measured_s for entry in choice.tried] == [0.009, 0.004, 0.03, 0.05]


def test_what_was_foretold_counts_as_much_as_what_was_measured() -> None:
    few = {1: [way("one-shot", 1, 0.002), way("two-shot", 1, 0.003)]}
    assert choose(few, [Measured(1, sums_s=(0.0029, 0.002))], NARROW, 8).few.algorithm == "one-shot"
    assert choose(few, [Measured(1, sums_s=(0.0031, 0.002))], NARROW, 8).few.algorithm == "two-shot"


def test_one_choice_serves_few_and_many() -> None:
    choice = choose({1: CANDIDATES[1]}, [Measured(1, sums_s=(0.21, 0.1))], SLOW, 8)
    assert choice.few == choice.many and choice.few.algorithm == "star"
