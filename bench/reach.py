"""What this program sets out to reach in memory and speed on one machine: every figure, its limit, and what was found.

    python -m bench reach --only worker,streaming

Runs the other measurements with the options that each figure is meant for, on quiet cores and a quiet disk; for all of
them over an hour as root, with up to 35 GB of disk.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.measurements import NAMES as MEASUREMENTS
from bench.options import read_names
from bench.report import Report, Value
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.errors import UsageError

_BIG = ("--shape", "llama-2-70b", "--threads", "1")
_WINDOW = (*_BIG, "--rank", "3/8")


@dataclass(frozen=True)
class Goal:
    """``figure`` of what ``bench MEASUREMENT ARGUMENTS`` reports must be at least or at most ``limit``."""

    name: str
    what: str
    figure: str
    limit: float
    is_least: bool
    measurement: str
    arguments: tuple[str, ...]
    where: tuple[tuple[str, Value], ...] = ()
    """Which of its reports count, by their values; of several the worst does."""

    def only(self, **where: Value) -> "Goal":
        """The same for those reports."""
        return replace(self, where=tuple(where.items()))

    def _counts(self, row: dict[str, Any]) -> bool:
        return self.figure in row and all(row.get(name) == value for name, value in self.where)

    def find(self, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The report that counts.

        Raises:
            UsageError: there is none.
        """
        fitting = [row for row in found if self._counts(row)]
        if not fitting:
            raise UsageError(f"{self.command}: reported nothing with {dict(self.where)}")
        return (min if self.is_least else max)(fitting, key=lambda row: float(row[self.figure]))

    @property
    def command(self) -> str:
        """For people to run it alone."""
        return " ".join(["python -m bench", self.measurement, *self.arguments])

    def is_reached(self, value: float) -> bool:
        return value >= self.limit if self.is_least else value <= self.limit


def _at_most(name: str, what: str, figure: str, limit: float, measurement: str, *arguments: str) -> Goal:
    return Goal(name, what, figure, limit, False, measurement, arguments)


def _at_least(name: str, what: str, figure: str, limit: float, measurement: str, *arguments: str) -> Goal:
    return Goal(name, what, figure, limit, True, measurement, arguments)


_F16 = (*_BIG, "--quant", "q4_0", "--kv-type", "F16")
_Q8_0 = (*_BIG, "--quant", "q4_0", "--kv-type", "Q8_0")
_STREAM = (*_WINDOW, "--quant", "q4_0", "--pairs", "5")
_HALF = (*_STREAM, "--part", "0.5", "--prefill", "0")
_TWO = ("--threads", "2")
_FAR = ("--prompt-tokens", "1900")
_CELLS = ("--rounds", "30")
_EIGHT_SUMS = ("--devices", "8", "--sizes", "4096,16384", "--latency-ms", "1", "--mbps", "300")
_DEVICES = ("--devices", "1,2,4", "--cpu", "0.4", "--answers", "3")
_LONG = ("--devices", "1,4", "--cpu", "0.4", "--prompt-tokens", "512", "--tokens", "4")
_EIGHT = ("--devices", "1,8", "--cpu", "0.2", "--answers", "3")
_7B = ("--shape", "llama-2-7b", "--devices", "1,8", "--cpu", "0.2", "--wire", "f16,int8")
_70B = ("--rows", "llama-2-70b")
_WIFI = ("--devices", "1,4", "--cpu", "0.4", "--medium-mbps", "100", "--latency-ms", "5", "--jitter-ms", "2")
_WIFI_ALL = (*_WIFI, "--layouts", "tensor,pipeline,mixture", "--prompt-tokens", "512")
_PLAIN = ("--devices", "4", "--cpu", "0.4", "--plain", "--allreduce", "one-shot")

GOALS = (
    _at_most("worker", "worker, 1/8 of 70B Q4_0, all cells: peak", "worker_peak_rss_bytes", 250e6, "rank", *_F16),
    _at_most("master", "the same for the master", "master_peak_rss_bytes", 280e6, "rank", *_F16),
    _at_most("loading", "the same: from `tpi serve` to ready", "load_s", 3.0, "rank", *_F16),
    _at_most("worker-q8", "the worker, KV cache in Q8_0: peak", "worker_peak_rss_bytes", 210e6, "rank", *_Q8_0),
    _at_most("worker-bf16", "weights in BF16: peak", "peak_rss_bytes", 600e6, "window", *_WINDOW, "--quant", "bf16"),
    _at_least("streaming", "streaming / the reader alone", "rate_ratio", 0.97, "window", *_STREAM, "--prefill", "0"),
    _at_most("half", "half in memory: time / max(read, compute)", "time_ratio", 1.05, "window", *_HALF),
    _at_least("decode", "1.1B decode / llama.cpp", "rate_ratio", 0.98, "decode", *_TWO),
    _at_least("decode-2000", "the same behind 1,900 tokens", "rate_ratio", 0.98, "decode", *_TWO, *_FAR),
    _at_most("python", "time outside the kernels", "outside_kernels_share", 0.02, "decode", *_TWO),
    _at_least("prefill", "1.1B prefill of 256 / llama.cpp", "rate_ratio", 0.97, "prefill", *_TWO),
    _at_most("memory", "peak / llama.cpp's", "peak_rss_ratio", 0.65, "prefill", *_TWO),
    _at_least("thrash", "7B under 2 GiB / llama.cpp mapped", "rate_ratio", 2.5, "thrash"),
    _at_least("thrash-500", "the same, disk at 500 MB/s", "rate_ratio", 1.6, "thrash", "--disk", "500MB"),
    *(
        _at_most(f"sums-{name}", f"sums by {name} / bound, worst cell", "ratio", 1.25, "allreduce", *_CELLS).only(
            algorithm=name
        )
        for name in ALGORITHMS
    ),
    _at_most("chosen", "the chosen / the best, worst cell", "over_best", 1.05, "allreduce", *_CELLS).only(
        is_chosen=True
    ),
    _at_most("two", "1.1B, two devices: token / bound", "decode_over_bound", 1.0, "cluster", *_DEVICES).only(devices=2),
    _at_most("four", "the same, four", "decode_over_bound", 1.15, "cluster", *_DEVICES).only(devices=4),
    _at_most("eight", "the same, eight of half the power", "decode_over_bound", 1.35, "cluster", *_EIGHT).only(
        devices=8
    ),
    _at_least("prompt-64", "prompt of 64: four / one", "prefill_speedup", 2.0, "cluster", *_DEVICES).only(devices=4),
    _at_least("prompt-512", "prompt of 512: four / one", "prefill_speedup", 2.8, "cluster", *_LONG).only(devices=4),
    _at_most("7b", "7B, eight devices: token / bound", "decode_over_bound", 1.2, "cluster", *_7B).only(
        devices=8, wire="f16"
    ),
    _at_most("7b-first", "the same: first token of 64 / bound", "first_token_over_bound", 1.7, "cluster", *_7B).only(
        devices=8, wire="f16"
    ),
    _at_most("70b-first", "70B, first token of 16 / bound", "first_token_over_bound", 1.15, "paper", *_70B),
    _at_least("wifi", "Wi-Fi: pipeline of four / one, decode", "decode_speedup", 0.72, "cluster", *_WIFI_ALL).only(
        arrangement="pipeline"
    ),
    _at_least("wifi-512", "the same, prompt of 512", "prefill_speedup", 2.2, "cluster", *_WIFI_ALL).only(
        arrangement="pipeline"
    ),
    _at_most("cpu-4k", "processor ms of a sum of 4 KB, eight ranks", "cpu_ms", 0.3, "allreduce", *_EIGHT_SUMS).only(
        is_chosen=True, payload_bytes=4096
    ),
    _at_most("cpu-16k", "the same, 16 KB", "cpu_ms", 0.45, "allreduce", *_EIGHT_SUMS).only(
        is_chosen=True, payload_bytes=16384
    ),
    _at_most("tls", "1.1B decode: TLS / plain links", "encrypted_over_plain", 1.03, "cluster", *_PLAIN),
)
NAMES = {goal.name: goal for goal in GOALS}


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench reach``."""
    parser = argparse.ArgumentParser(prog="bench reach", description="Measure what is to be reached.")
    parser.add_argument("--only", metavar="NAME,NAME,…", default=",".join(NAMES), help="default: %(default)s")
    given = parser.parse_args(arguments)
    names = read_names("--only", given.only, NAMES)
    found: dict[str, list[dict[str, Any]]] = {}
    for goal in (NAMES[name] for name in names):
        if goal.command not in found:
            reports = MEASUREMENTS[goal.measurement].measure(goal.arguments)
            found[goal.command] = [json.loads(report.json()) for report in reports]
        yield report_of(goal, goal.find(found[goal.command]))


def report_of(goal: Goal, figures: dict[str, Any]) -> Report:
    """The goal beside what was found."""
    value = figures[goal.figure]
    return Report("reach").add(
        name=goal.name,
        what=goal.what,
        found=value,
        limit=f"{'>=' if goal.is_least else '<='} {goal.limit:,g}",
        is_reached=goal.is_reached(value),
        bound=figures.get("bound_tokens_per_s"),
        command=goal.command,
    )
