"""Sums alone, on emulated devices: every algorithm against its bound, and what a cluster would choose against the best.

    python -m bench allreduce --devices 2,4 --sizes 4096,16384,262144 --latency-ms 1,5 --mbps 300,1000

A row is one algorithm in one cell: N devices, a payload of S bytes in F16, τ one way, B per port. ``ratio`` is its
time, idle gap before each sum, last start to last finish over all ranks, ÷ its bound: hops·τ + payloads·S/B, as its
file says. All algorithms of a cell take turns in one run. ``is_chosen``: what a cluster measures first makes it choose
this.
"""

import argparse
from collections.abc import Iterator, Sequence

from bench.bounds import bound_s
from bench.options import read_counts, read_names, read_numbers
from bench.report import Report
from bench.sums import LEAST_ROUNDS, SumKind, SumTimes, measure_sums, measure_swap_s
from bench.testbed.testbed import Device, Testbed, require_emulation
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.epoch.choosing import TRIED, Network, choose, predict_s, trials_of
from tpi.cluster.reports import SumWay
from tpi.errors import UsageError

_F16_BYTES = 2


def measure_cell(
    names: Sequence[str],
    n_ranks: int,
    n_bytes: int,
    latency_s: float,
    rate_bps: float,
    given: argparse.Namespace,
) -> Iterator[Report]:
    """All algorithms in one cell."""
    n_values = n_bytes // _F16_BYTES
    kinds = [SumKind(name, n_values) for name in names]
    network = Network(latency_s, rate_bps / 8)
    tried = [SumWay(name, "f16", 1, predict_s(name, n_ranks, n_bytes, network)) for name in TRIED]
    candidates = {1: sorted(tried, key=lambda way: way.predicted_s)}
    with Testbed([Device(given.cpu)] * n_ranks, latency_s, rate_bps) as bed:
        outcome = measure_sums(
            bed,
            kinds,
            n_rounds=given.rounds,
            gap_s=given.gap_ms / 1e3,
            idle_s=given.idle,
            trials=trials_of(candidates),
            width=n_values,
            with_helper=not given.python,
        )
        late_ms = bed.statistics().late_p99_s * 1e3
        swap_s = measure_swap_s(bed, n_bytes, given.gap_ms / 1e3, given.rounds)
    chosen = choose(candidates, outcome.tried, network, 8).few.algorithm
    best_s = min(entry.wall_s for entry in outcome.sums)
    for entry in outcome.sums:
        yield _report(entry, n_ranks, n_bytes, latency_s, rate_bps).add(
            over_best=entry.wall_s / best_s,
            is_chosen=entry.kind.algorithm == chosen,
            swap_ms=swap_s * 1e3,
            switch_late_p99_ms=late_ms,
        )


def _report(entry: SumTimes, n_ranks: int, n_bytes: int, latency_s: float, rate_bps: float) -> Report:
    bound = bound_s(entry.kind.algorithm, n_ranks, n_bytes, latency_s, rate_bps)
    return Report("allreduce").add(
        devices=n_ranks,
        payload_bytes=n_bytes,
        latency_ms=latency_s * 1e3,
        mbps=rate_bps / 1e6,
        algorithm=entry.kind.algorithm,
        sum_ms=entry.wall_s * 1e3,
        bound_ms=bound * 1e3,
        ratio=entry.wall_s / bound,
        after_idle_ms=entry.first_s * 1e3,
        cpu_ms=entry.cpu_s * 1e3,
    )


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench allreduce``."""
    parser = argparse.ArgumentParser(prog="bench allreduce", description="Measure sums on emulated devices.")
    parser.add_argument("--devices", default="2,4", metavar="N,N,…")
    parser.add_argument("--sizes", default="4096,16384,262144", metavar="BYTES,…", help="encoded payloads")
    parser.add_argument("--latency-ms", default="1,5", metavar="MS,…")
    parser.add_argument("--mbps", default="300,1000", metavar="MBPS,…")
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS), metavar="NAME,…")
    parser.add_argument("--cpu", type=float, metavar="CORES", help="quota of each device (default: none)")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--gap-ms", type=float, default=20.0, help="idle before each sum")
    parser.add_argument("--python", action="store_true", help="without the C helper")
    parser.add_argument("--idle", type=float, default=0.0, metavar="SECONDS", help="idle before one last sum of each")
    given = parser.parse_args(arguments)
    require_emulation()
    if given.rounds < LEAST_ROUNDS:
        raise UsageError(f"--rounds {given.rounds}: the first are not counted; write {LEAST_ROUNDS} or more")
    names = read_names("--algorithms", given.algorithms, ALGORITHMS)
    for n_ranks in read_counts("--devices", given.devices):
        for latency_ms in read_numbers("--latency-ms", given.latency_ms):
            for mbps in read_numbers("--mbps", given.mbps):
                for size in read_counts("--sizes", given.sizes):
                    cell = n_ranks, size, latency_ms / 1e3, mbps * 1e6
                    yield from measure_cell(names, *cell, given)
