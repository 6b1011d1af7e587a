"""Draws what a cluster's network costs: sums against latency, tokens against devices. PNG and SVG; no measuring."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.charts import BLUE, DARK, GREEN, ORANGE, PURPLE, RED, SKY, make_figure, save, set_title, tidy

_COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY)
_PARTS = (("computing", GREEN), ("sums", BLUE), ("disk", ORANGE), ("all else", "#BBBBBB"))


@dataclass(frozen=True)
class SumPoint:
    """A sum at one latency: milliseconds, of the link, as measured, and at best."""

    latency_ms: float
    sum_ms: float
    bound_ms: float


@dataclass(frozen=True)
class DevicesPoint:
    """A cluster: milliseconds of a token, and how much of them a rank computes, adds up and waits for its disk."""

    n_devices: int
    token_ms: float
    compute_ms: float
    sum_ms: float
    disk_ms: float


def draw_sums(points: Mapping[str, Sequence[SumPoint]], title: str, path: Path) -> list[Path]:
    """Time of a sum against latency, for each algorithm with its bound."""
    figure = make_figure(10, 6)
    axes = figure.subplots()
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    for (name, found), colour in zip(points.items(), _COLOURS, strict=False):
        latencies = [point.latency_ms for point in found]
        axes.plot(latencies, [point.sum_ms for point in found], "o-", color=colour, lw=1.6, ms=5, label=name)
        axes.plot(latencies, [point.bound_ms for point in found], ":", color=colour, lw=1.8)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({point.latency_ms for found in points.values() for point in found})
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("latency of the links, one way, ms (logarithmic)")
    axes.set_ylabel("one sum, ms (logarithmic)")
    set_title(axes, "Last start to last finish over all ranks, median; dotted: the least that the links allow")
    axes.grid(color="#E0E0E0", lw=0.6)
    axes.set_axisbelow(True)
    handles, _ = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color=DARK, ls=":", lw=1.8, label="bound"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=10)
    tidy(axes)
    return save(figure, path)


def draw_devices(points: Sequence[DevicesPoint], title: str, path: Path) -> list[Path]:
    """Tokens per second against devices, and what a token's time goes to."""
    figure = make_figure(10, 5.4)
    speeds, times = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    places = range(len(points))
    names = [f"{point.n_devices}" for point in points]
    rates = [1e3 / point.token_ms for point in points]
    speeds.plot(places, rates, "o-", color=DARK, lw=1.6, ms=6)
    for place, rate in zip(places, rates, strict=True):
        speeds.annotate(f"{rate:.2f}", (place, rate), (0, 8), textcoords="offset points", ha="center", color=DARK)
    speeds.set_ylim(0, max(rates) * 1.2)
    speeds.set_xlim(-0.4, len(points) - 0.6)
    set_title(speeds, "Tokens per second")
    below = [0.0] * len(points)
    for name, colour in _PARTS:
        parts = [_part_of(point, name) for point in points]
        times.bar(places, parts, 0.6, below, color=colour, label=name)
        below = [base + part for base, part in zip(below, parts, strict=True)]
    set_title(times, "Milliseconds of a token, mean of the ranks")
    for axes in (speeds, times):
        axes.set_xticks(list(places), names)
        axes.set_xlabel("devices")
        axes.grid(axis="y", color="#E0E0E0", lw=0.6)
        axes.set_axisbelow(True)
        tidy(axes)
    figure.legend(loc="outside lower center", ncols=len(_PARTS), frameon=False, fontsize=10)
    return save(figure, path)


def _part_of(point: DevicesPoint, name: str) -> float:
    known = {"computing": point.compute_ms, "sums": point.sum_ms, "disk": point.disk_ms}
    return known[name] if name in known else max(0.0, point.token_ms - sum(known.values()))
