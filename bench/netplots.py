"""Two pictures of clusters, PNG and SVG: sums against latency, tokens per second against the number of devices.

    python -m bench netplots --out plots

Needs root, for emulated devices. The split of a token's time is taken over whole answers to short prompts, so it has a
little of the prompt in it.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.allreduce import measure_cell
from bench.cluster import ClusterFolder, Conditions, find_model, measure
from bench.models import RandomModel
from bench.netcharts import DevicesPoint, SumPoint, draw_devices, draw_sums
from bench.options import read_counts, read_numbers
from bench.report import Report
from bench.shapes import SHAPES, find_shape
from bench.testbed.testbed import Device, require_emulation
from tpi.cli.environment import find_folders
from tpi.cluster.allreduce.algorithms import ALGORITHMS

_KINDS = ("sums", "devices")
_ROUNDS = 30
_PROMPT_TOKENS = 8


def plot_sums(given: argparse.Namespace) -> Iterator[Report]:
    """A report for every algorithm and latency, then one for the picture."""
    points: dict[str, list[SumPoint]] = {name: [] for name in ALGORITHMS}
    asked = argparse.Namespace(cpu=None, rounds=_ROUNDS, gap_ms=20.0, idle=0.0, python=False)
    for latency_ms in read_numbers("--latencies", given.latencies):
        cell = given.ranks, given.payload, latency_ms / 1e3, given.mbps * 1e6
        for report in measure_cell(list(ALGORITHMS), *cell, asked):
            figures = json.loads(report.json())
            points[figures["algorithm"]].append(SumPoint(latency_ms, figures["sum_ms"], figures["bound_ms"]))
            yield report
    title = f"One sum of {given.payload / 1024:g} KiB over {given.ranks} devices, ports of {given.mbps:g} Mbps"
    places = draw_sums(points, title, given.out / "sums-against-latency")
    yield Report("netplots").add(plot="sums", files=[str(place) for place in places])


def plot_devices(given: argparse.Namespace) -> Iterator[Report]:
    """A report for every cluster, then one for the picture."""
    work: Path = given.work or find_folders().cache / "bench"
    model = RandomModel(find_shape(given.shape), given.quant)
    path = find_model(model, work)
    conditions = Conditions(
        device=Device(given.cpu),
        latency_s=given.latency_ms / 1e3,
        rate_bps=given.mbps * 1e6,
        n_threads=1,
        n_prompt_tokens=_PROMPT_TOKENS,
        n_tokens=given.tokens,
        memory=given.memory,
        window=given.window,
        n_answers=given.answers,
    )
    points = []
    for count in read_counts("--devices", given.devices):
        with tempfile.TemporaryDirectory(dir=work, prefix="netplots-") as folder:
            report = measure(model, path, count, conditions, ClusterFolder(Path(folder), work))
        points.append(_point(json.loads(report.json())))
        yield report
    title = f"{given.shape}, {given.quant.upper()}: devices of {given.cpu:g} core, {given.latency_ms:g} ms one way, "
    title += f"{given.mbps:g} Mbps"
    places = draw_devices(points, title, given.out / "tokens-against-devices")
    yield Report("netplots").add(plot="devices", files=[str(place) for place in places])


def _point(figures: dict[str, Any]) -> DevicesPoint:
    """Times of all answers are divided as their passes' were."""
    token_ms = 1e3 / figures["decode_tokens_per_s"]
    part = {name: statistics.mean(figures[name]) / figures["wall_s"] for name in _SPLIT}
    return DevicesPoint(figures["devices"], token_ms, *(token_ms * part[name] for name in _SPLIT))


_SPLIT = ("compute_s", "sum_wait_s", "disk_wait_s")


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench netplots``."""
    parser = argparse.ArgumentParser(prog="bench netplots", description="Draw what a cluster's network costs.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--plot", choices=_KINDS, help="only this one")
    parser.add_argument("--latencies", default="0.2,0.5,1,2,5,10", metavar="MS,…", help="of sums")
    parser.add_argument("--ranks", type=int, default=4, help="of sums")
    parser.add_argument("--payload", type=int, default=16384, metavar="BYTES", help="of sums")
    parser.add_argument("--devices", default="1,2,4", metavar="N,N,…")
    parser.add_argument("--shape", default="tinyllama-1.1b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--cpu", type=float, default=0.4, metavar="CORES")
    parser.add_argument("--memory", metavar="SIZE", help="--memory of each device")
    parser.add_argument("--window", metavar="SIZE", help="--window of each device")
    parser.add_argument("--latency-ms", type=float, default=1.0, help="of devices")
    parser.add_argument("--mbps", type=float, default=300.0)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--answers", type=int, default=2)
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    require_emulation()
    if given.plot != "devices":
        yield from plot_sums(given)
    if given.plot != "sums":
        yield from plot_devices(given)
