"""Two pictures of one rank, PNG and SVG: its memory over time, and the time per token against the window's memory.

    python -m bench plots --shape llama-2-70b --rank 3/8 --out plots

Writes the rank's shard to the work folder if it is not there. The disk must not be busy with other things; with
``--disk 500MB``, which needs root, the rank runs on an emulated device that reads no faster than that.
"""

import argparse
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np

from bench.charts import BudgetPoint, draw_budgets, draw_timeline
from bench.models import RandomModel
from bench.report import Report
from bench.shapes import SHAPES, find_shape
from bench.streaming import Request
from bench.testbed.testbed import Device, Testbed
from bench.timeline import Play, record
from bench.window import find_rank, run_alone
from tpi.cli.environment import find_folders
from tpi.cli.options import default_threads
from tpi.config import parse_bytes
from tpi.errors import UsageError
from tpi.weights.shards.shard import open_shard
from tpi.weights.stored import stored_from_shard
from tpi.weights.streaming.window import Window

_KINDS = ("timeline", "budgets")


_Popen = Callable[..., "subprocess.Popen[str]"]


def plot_timeline(play: Play, name: str, out: Path, popen: _Popen = subprocess.Popen) -> Report:
    """Memory over time; blocks while the rank runs. ``name`` says what the rank is of."""
    timeline = record(play, popen)
    played = timeline.played
    title = (
        f"{name}: memory while {play.n_prefill} tokens of prompt are read and {play.n_tokens} written\n"
        f"disk: {played.disk_mode}; {_threads(play.n_threads)}, context {play.n_cells}"
        + (f", sums of {play.sum_s * 1e3:g} ms" if play.sum_s else "")
    )
    places = draw_timeline(timeline, title, out / "memory-over-time")
    return Report("plots").add(
        plot="timeline",
        files=[str(place) for place in places],
        peak_rss_bytes=played.peak_rss_bytes,
        window_bytes=play.window_bytes,
        kv_bytes=played.kv_bytes,
        wall_s=played.phases[-1].at_s,
        disk=played.disk_mode,
        samples=len(timeline.resident),
    )


def plot_budgets(
    request: Request, name: str, n_points: int, out: Path, popen: _Popen = subprocess.Popen
) -> Iterator[Report]:
    """A report for every budget from the largest piece to all weights, then one for the picture; blocks."""
    stored = stored_from_shard(open_shard(Path(request.shard)))
    points: list[BudgetPoint] = []
    rates: list[float] = []
    for budget in budgets_between(Window.minimum_bytes(stored), stored.arena_bytes, n_points):
        asked = msgspec.structs.replace(request, window_bytes=budget, n_prefill=0)
        figures = run_alone(asked, popen)
        streamed, rate = figures.streamed_bytes_per_token, figures.disk_bytes_per_s
        point = BudgetPoint(
            budget, figures.token_s, streamed, rate if streamed else 0.0, figures.compute_s, figures.time_ratio
        )
        points.append(point)
        rates += [rate] if streamed else []
        yield Report("plots").add(
            plot="budgets",
            window_bytes=budget,
            pinned_bytes=figures.pinned_bytes,
            streamed_bytes_per_token=streamed,
            token_s=figures.token_s,
            compute_s=figures.compute_s,
            disk_bytes_per_s=rate if streamed else None,
            bound_ratio=point.bound_ratio,
            peak_rss_bytes=figures.peak_rss_bytes,
        )
    disk = f"{min(rates) / 1e6:,.0f} to {max(rates) / 1e6:,.0f} MB/s without computing" if rates else "not used"
    title = f"{name}: time per token against memory for weights\ndisk: {disk}; {_threads(request.n_threads)}"
    places = draw_budgets(points, title, out / "token-against-memory")
    yield Report("plots").add(plot="budgets", files=[str(place) for place in places])


def budgets_between(least: int, most: int, n_points: int) -> list[int]:
    """Window sizes, the least and the most included, each the same factor above the one before."""
    between = np.geomspace(least, most, max(2, n_points))[1:-1]
    return [least, *(int(value) for value in between), most]


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def main(arguments: Sequence[str]) -> Iterator[Report]:
    """``python -m bench plots``."""
    parser = argparse.ArgumentParser(prog="bench plots", description="Draw a rank's memory and speed.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--plot", choices=_KINDS, help="only this one")
    parser.add_argument("--shape", default="llama-2-70b", help=", ".join(SHAPES))
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--rank", default="3/8")
    parser.add_argument("--window", default="64MB", metavar="SIZE", help="weights in memory, over time")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--prefill", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--chunk", type=int, default=128, metavar="TOKENS", help="of the prompt in one pass")
    parser.add_argument("--tokens", type=int, default=4)
    parser.add_argument("--sum-ms", type=float, default=5.0, help="how long every sum of the ranks takes, over time")
    parser.add_argument("--points", type=int, default=8, help="budgets to measure")
    parser.add_argument("--pairs", type=int, default=3, help="tokens that are measured for each budget")
    parser.add_argument("--disk", metavar="SIZE", help="limit of reads per second (default: none)")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--work", type=Path, metavar="DIR", help="where models are written (default: the user's cache)")
    given = parser.parse_args(arguments)
    if given.plot != "budgets" and not 1 <= given.tokens <= given.context - given.prefill:
        raise UsageError(f"--context {given.context} must have room for --prefill and --tokens, which must be above 0")
    shard = find_rank(
        RandomModel(find_shape(given.shape), given.quant), given.rank, given.work or find_folders().cache / "bench"
    )
    if given.disk is None:
        yield from _draw(given, shard, subprocess.Popen)
    else:
        device = Device(disk_bytes_per_s=parse_bytes(given.disk, "--disk"))
        with Testbed([device], disk=shard.parent) as bed:
            yield from _draw(given, shard, partial(bed.popen, 0))


def _draw(given: argparse.Namespace, shard: Path, popen: _Popen) -> Iterator[Report]:
    name = f"{given.shape}, rank {given.rank}, {given.quant.upper()}"
    name += f", disk limited to {given.disk}/s" if given.disk else ""
    if given.plot != "budgets":
        play = Play(
            shard=str(shard),
            window_bytes=parse_bytes(given.window, "--window"),
            n_cells=given.context,
            n_prefill=given.prefill,
            chunk_tokens=given.chunk,
            n_tokens=given.tokens,
            n_threads=given.threads,
            sum_s=given.sum_ms / 1e3,
        )
        yield plot_timeline(play, name, given.out, popen)
    if given.plot != "timeline":
        request = Request(str(shard), n_cells=given.context, n_threads=given.threads, n_pairs=given.pairs)
        yield from plot_budgets(request, name, given.points, given.out, popen)
