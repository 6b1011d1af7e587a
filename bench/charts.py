"""Draws the bench's pictures, each as PNG and SVG. No measuring, no state; the colours are those of Okabe and Ito."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from bench.timeline import Timeline

_MB = 1e6
BLUE, SKY, ORANGE, RED, GREEN, PURPLE = "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7"
GREY, PALE = "#6E6E6E", "#E4E4E4"
_STATES = (
    ("pinned for good", BLUE),
    ("held by the computation", RED),
    ("loaded, waiting for its turn", GREEN),
    ("being read", ORANGE),
    ("free", PALE),
)
_ORDER = [0, 3, 1, 2, 4]
"""Of the fields of a use as a timeline has them, in the order of ``_STATES``."""
_BINS = 240
_ZOOM_TOKENS, _MIN_ZOOM_S = 0.125, 0.2
"""The part of a token's time that is drawn in detail, and the least of it."""
_PHASES = {"open": "start", "prefill": "prefill", "decode": "decode"}
DARK = "#222222"
_NARROW = 0.06
"""The part of the width in which a phase's name has no room."""
_Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class BudgetPoint:
    """A window's budget; what a token takes, streams and computes, the disk's rate (0: nothing was read), and the
    median of time divided by bound over pairs."""

    window_bytes: int
    token_s: float
    streamed_bytes: int
    disk_bytes_per_s: float
    compute_s: float
    bound_ratio: float


def draw_timeline(timeline: Timeline, title: str, path: Path) -> list[Path]:
    """Memory of a rank over time, its window's state below it, and a moment of that in detail."""
    figure = make_figure(10, 9)
    top, middle, bottom = figure.subplots(3, 1, height_ratios=[1.15, 1, 1])
    middle.sharex(top)
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    resident, uses = np.array(timeline.resident), np.array(timeline.played.uses)
    end_s = timeline.played.phases[-1].at_s
    _draw_resident(top, resident[resident[:, 0] <= end_s], timeline)
    _draw_uses(middle, _averaged(uses, end_s), timeline)
    set_title(middle, f"The window's {_size_of(uses):,.0f} MB, averages over {end_s / _BINS * 1e3:.0f} ms")
    middle.set_xlabel("seconds since the process was started")
    first_s, last_s = _moment(timeline)
    inside = uses[(uses[:, 0] >= first_s) & (uses[:, 0] <= last_s)]
    inside[:, 0] = (inside[:, 0] - first_s) * 1e3
    _draw_uses(bottom, inside, None)
    bottom.set_xlim(0, (last_s - first_s) * 1e3)
    set_title(bottom, f"The same at {first_s:.1f} s, sampled every few milliseconds while it decodes")
    bottom.set_xlabel("milliseconds")
    handles, labels = bottom.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10)
    return save(figure, path)


def draw_budgets(points: Sequence[BudgetPoint], title: str, path: Path) -> list[Path]:
    """Time per token against the memory of the window, with what bounds it."""
    figure = make_figure(10, 6)
    axes = figure.subplots()
    figure.suptitle(title, fontsize=12, x=0.02, ha="left")
    budgets = np.array([point.window_bytes / _MB for point in points])
    between, disk_s, compute_s = _bounds(points)
    bound_s = np.maximum(disk_s, compute_s)
    axes.fill_between(between, bound_s, color=PALE, lw=0)
    axes.plot(between, bound_s, "-", color=PALE, lw=7, label="bound: the longer of these two")
    axes.plot(between, disk_s, "--", color=ORANGE, lw=2, label="streamed bytes ÷ disk rate")
    axes.plot(between, compute_s, ":", color=GREEN, lw=2.4, label="computing alone")
    axes.plot(budgets, [p.token_s for p in points], "o-", color=BLUE, lw=1.6, ms=7, label="measured")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    for point, budget in zip(points, budgets, strict=True):
        text, place = f"{point.token_s:.2f} s\n({point.bound_ratio:.2f})", (budget, point.token_s)
        is_above = point.token_s >= np.interp(budget, between, bound_s)
        offset, side = ((0, 9), "bottom") if is_above else ((0, -9), "top")
        axes.annotate(
            text, place, offset, textcoords="offset points", ha="center", va=side, size=9, color=BLUE, bbox=box
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(budgets.tolist()))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(0, max(*(point.token_s for point in points), *bound_s) * 1.2)
    axes.margins(x=0.05)
    axes.set_xlabel("memory of the window, MB (from the largest piece to all weights; logarithmic)")
    axes.set_ylabel("seconds per token")
    set_title(axes, "In brackets: time divided by bound, median of pairs taken in turns")
    axes.grid(axis="y", color="#D0D0D0", lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    tidy(axes)
    return save(figure, path)


def _bounds(points: Sequence[BudgetPoint]) -> tuple[_Rows, _Rows, _Rows]:
    """Budgets in MB, close to each other, and for each the seconds that the disk and the kernels need."""
    budgets = [float(point.window_bytes) for point in points]
    between = np.geomspace(budgets[0], budgets[-1], 400)
    reading = [point for point in points if point.disk_bytes_per_s] or [BudgetPoint(1, 0, 0, 1.0, 0, 1)]
    streamed = np.interp(between, budgets, [point.streamed_bytes for point in points])
    rates = np.interp(between, [p.window_bytes for p in reading], [p.disk_bytes_per_s for p in reading])
    return between / _MB, streamed / rates, np.interp(between, budgets, [point.compute_s for point in points])


def _draw_resident(axes: Axes, resident: _Rows, timeline: Timeline) -> None:
    played = timeline.played
    axes.fill_between(resident[:, 0], resident[:, 1] / _MB, color=SKY, alpha=0.35, lw=0)
    axes.plot(resident[:, 0], resident[:, 1] / _MB, color="black", lw=1.4)
    axes.axhline(played.peak_rss_bytes / _MB, color=RED, lw=1.2, ls="--")
    end_s, peak = played.phases[-1].at_s, played.peak_rss_bytes / _MB
    axes.annotate(
        f"peak (VmHWM) {peak:,.0f} MB",
        (end_s, peak),
        (-4, 4),
        textcoords="offset points",
        ha="right",
        color=RED,
        fontsize=10,
    )
    axes.set_ylim(0, peak * 1.22)
    axes.set_xlim(0, end_s)
    axes.set_ylabel("resident memory, MB")
    set_title(axes, f"The process: window, KV cache of {played.kv_bytes / _MB:,.0f} MB, all else")
    _mark_phases(axes, timeline, with_names=True)
    tidy(axes)


def _draw_uses(axes: Axes, uses: _Rows, timeline: Timeline | None) -> None:
    fields = [uses[:, 1 + field] / _MB for field in _ORDER]
    names, colours = zip(*_STATES, strict=True)
    axes.stackplot(uses[:, 0], *fields, labels=names, colors=colours, lw=0, step=None if timeline else "post")
    axes.set_ylim(0, _size_of(uses))
    axes.set_ylabel("window, MB")
    if timeline is not None:
        _mark_phases(axes, timeline, with_names=False)
    tidy(axes)


def _mark_phases(axes: Axes, timeline: Timeline, *, with_names: bool) -> None:
    phases = [phase for phase in timeline.played.phases if phase.name in (*_PHASES, "end")]
    for phase, following in pairwise(phases):
        if phase.name != "open":
            axes.axvline(phase.at_s, color="black", lw=0.8, ls=":")
        start_s = 0.0 if phase.name == "open" else phase.at_s
        if with_names:
            width_s, name = following.at_s - start_s, _PHASES[phase.name]
            is_wide = width_s > _NARROW * phases[-1].at_s
            place_s, side = (start_s + width_s / 2, "center") if is_wide else (following.at_s, "left")
            style = axes.get_xaxis_transform()
            text = name if is_wide else f" ← {name}"
            axes.text(place_s, 0.97, text, transform=style, ha=side, va="top", color=DARK)


def _averaged(uses: _Rows, end_s: float) -> _Rows:
    """Means over equal times; a time without samples is left out."""
    bins = np.minimum((uses[:, 0] / end_s * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, minlength=_BINS)
    means = [np.bincount(bins, column, _BINS) / np.maximum(counts, 1) for column in uses.T[1:]]
    middles = (np.arange(_BINS) + 0.5) * end_s / _BINS
    return np.column_stack([middles, *means])[counts > 0]


def _moment(timeline: Timeline) -> tuple[float, float]:
    """Part of the last token but one, or of what there is."""
    tokens = [phase.at_s for phase in timeline.played.phases if phase.name in ("decode", "token", "end")]
    first_s, last_s = (tokens[-3], tokens[-2]) if len(tokens) > 2 else (tokens[0], timeline.played.phases[-1].at_s)
    middle_s = (first_s + last_s) / 2
    half_s = max(_MIN_ZOOM_S, (last_s - first_s) * _ZOOM_TOKENS) / 2
    return max(first_s, middle_s - half_s), min(last_s, middle_s + half_s)


def _size_of(uses: _Rows) -> float:
    return float(uses[0, 1:].sum() / _MB)


def set_title(axes: Axes, text: str) -> None:
    """Above the axes, at their left."""
    axes.set_title(text, loc="left", fontsize=10, color=DARK)


def tidy(axes: Axes) -> None:
    """No frame but the two axes."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def make_figure(width: float, height: float) -> Figure:
    """Of so many inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> list[Path]:
    """Writes ``path`` as PNG and SVG; the folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    places = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for place in places:
        figure.savefig(place, dpi=150, metadata={"Date": None} if place.suffix == ".svg" else None)
    return places
