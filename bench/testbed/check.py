"""Checks a testbed with programs that run on its devices: latency, rate, and the limits that were asked for."""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.report import Report
from bench.testbed.testbed import Device, Testbed
from tpi.config import parse_bytes
from tpi.errors import UsageError

_PROBE = str(Path(__file__).with_name("probe.py"))
_PORT = "7700"
_N_PINGS = 200
_SEND_S = 2.0
_SETTLE_S, _WIRE_S = 0.8, 1.2
"""When, while programs send, bytes on the wire are counted, and for how long."""

_BURN_S = 1.0
_READ_S = 1.0
_MIN_READ_BYTES, _MAX_READ_BYTES = 16 << 20, 512 << 20
_TIMEOUT_S = 60.0


def check(bed: Testbed) -> Report:
    """Measures all neighbours' latencies one after the other, then rates of one, both ways, and two into one port."""
    n = len(bed.devices)
    report = Report("testbed").add(devices=n, congestion_control=bed.congestion_control, is_realtime=bed.is_realtime)
    if n > 1:
        for rank in range(n):
            process = _start(bed, rank, "serve", bed.address(rank), _PORT)
            assert process.stdout is not None
            process.stdout.readline()
        _check_links(bed, report)
    for rank, device in enumerate(bed.devices[:1]):
        if device.cpu is not None:
            report.add(cpu_share=_result(_start(bed, rank, "burn", str(_BURN_S))))
        if device.disk_bytes_per_s is not None:
            report.add(disk_read_bytes_per_s=_read_rate(bed, rank, device.disk_bytes_per_s))
    return report


def _check_links(bed: Testbed, report: Report) -> None:
    n = len(bed.devices)
    bed.reset_statistics()
    halves = [
        _result(_start(bed, rank, "ping", bed.address((rank + 1) % n), _PORT, str(_N_PINGS))) for rank in range(n)
    ]
    late = bed.statistics()
    every = sorted(half * 1e3 for pair in halves for half in pair)
    report.add(
        half_round_trip_p50_ms=statistics.median(every),
        half_round_trip_p90_ms=every[len(every) * 9 // 10],
        half_round_trip_worst_pair_p50_ms=max(statistics.median(pair) for pair in halves) * 1e3,
        switch_late_p99_ms=late.late_p99_s * 1e3,
    )
    rates, wire = _rates(bed, [(0, 1)])
    report.add(rate_mbps=rates[0], wire_rate_mbps=wire)
    rates, wire = _rates(bed, [(0, 1), (1, 0)])
    report.add(duplex_rate_mbps=min(rates), duplex_wire_rate_mbps=wire)
    if n > 2:
        rates, wire = _rates(bed, [(0, 1), (2, 1)])
        report.add(shared_port_rate_mbps=sum(rates), shared_port_wire_rate_mbps=wire)


def _rates(bed: Testbed, pairs: Sequence[tuple[int, int]]) -> tuple[list[float], float]:
    """Megabits per second when all pairs (from, to) send at once: of what each pair's programs get, and what the least
    loaded of the receivers' ports carried on the wire, headers and acknowledgements included."""
    senders = [_start(bed, a, "send", bed.address(b), _PORT, str(_SEND_S)) for a, b in pairs]
    time.sleep(_SETTLE_S)
    before, began = bed.statistics(), time.perf_counter()
    time.sleep(_WIRE_S)
    after, took_s = bed.statistics(), time.perf_counter() - began
    n_bytes = min(after.devices[b].received_bytes - before.devices[b].received_bytes for _, b in pairs)
    return [_result(sender) / 1e6 for sender in senders], n_bytes * 8 / took_s / 1e6


def _read_rate(bed: Testbed, rank: int, limit: float) -> float:
    size = min(max(int(limit * _READ_S), _MIN_READ_BYTES), _MAX_READ_BYTES)
    with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".bench-") as file:
        for _ in range(-(-size // (1 << 20))):
            file.write(os.urandom(1 << 20))
        file.flush()
        os.fsync(file.fileno())
        rate: float = _result(_start(bed, rank, "read", file.name))
    return rate


def _start(bed: Testbed, rank: int, *arguments: str) -> Any:
    return bed.popen(rank, [sys.executable, "-I", "-S", _PROBE, *arguments], stdout=-1, text=True)


def _result(process: Any) -> Any:
    output, _ = process.communicate(timeout=_TIMEOUT_S)
    if process.returncode:
        raise UsageError(f"a program on an emulated device ended with {process.returncode}")
    return json.loads(output)


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench testbed``."""
    parser = argparse.ArgumentParser(prog="bench testbed", description="Emulate devices and check them.")
    parser.add_argument("--devices", type=int, default=4, metavar="N")
    parser.add_argument("--latency-ms", type=float, default=1.0, help="one way (default: 1)")
    parser.add_argument("--mbps", type=float, default=300.0, help="rate of every port (default: 300)")
    parser.add_argument("--medium-mbps", type=float, default=0.0, help="one medium for all instead of ports")
    parser.add_argument("--jitter-ms", type=float, default=0.0, help="each packet is up to so much earlier or later")
    parser.add_argument("--cpu", type=float, metavar="CORES", help="quota of each device")
    parser.add_argument("--memory", metavar="SIZE", help="limit of each device")
    parser.add_argument("--disk", metavar="SIZE", help="limit of each device's reads per second, e.g. 500MB")
    given = parser.parse_args(arguments)
    device = Device(
        given.cpu,
        parse_bytes(given.memory, "--memory") if given.memory else None,
        parse_bytes(given.disk, "--disk") if given.disk else None,
    )
    medium_bps, jitter_s = given.medium_mbps * 1e6, given.jitter_ms / 1e3
    latency_s, rate_bps = given.latency_ms / 1e3, given.mbps * 1e6
    with Testbed([device] * given.devices, latency_s, rate_bps, medium_bps=medium_bps, jitter_s=jitter_s) as bed:
        report = check(bed)
    yield report.add(latency_ms=given.latency_ms, mbps=given.mbps)
