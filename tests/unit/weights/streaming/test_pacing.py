"""The model of a pass: its figures where they are known, and against a real window with a reader of known speed."""

import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.weights.streaming.test_window import run_pass, store
from tpi.errors import Cancelled
from tpi.weights.files import PAGE_BYTES
from tpi.weights.stored import StoredPiece, StoredWeights
from tpi.weights.streaming import window as window_module
from tpi.weights.streaming.disk import PendingRead, PieceReader
from tpi.weights.streaming.pacing import PassClock, PassTimes, wait_s
from tpi.weights.streaming.pins import PinPlan, plan_again, plan_pins
from tpi.weights.streaming.window import Window

LAYERS = 20


def layers(attention_s: float, ffn_s: float, sum_s: float) -> PassTimes:
    """Computing and sums of alternating blocks; the disk reads one unit a second."""
    return PassTimes((attention_s, ffn_s) * LAYERS, (sum_s,) * 2 * LAYERS, 1.0)


def test_tight_steady_state_never_waits() -> None:
    # t_attn + a >= tau_ffn and t_ffn + a >= tau_attn, with room for two blocks.
    assert wait_s([10, 30] * LAYERS, layers(28, 8, 2), (), 60) == pytest.approx(0)


def test_loose_steady_state_needs_more_room() -> None:
    # In sum a layer computes for longer than it is read; only its FFN takes longer than computing attention.
    times = layers(10, 32, 1)
    assert wait_s([10, 30] * LAYERS, times, (), 41) > 5 * LAYERS
    assert wait_s([10, 30] * LAYERS, times, (), 90) == pytest.approx(0)


@pytest.mark.parametrize("every", (2, 4))
def test_one_ffn_in_so_many_pinned_makes_up_for_a_slow_disk(every: int) -> None:
    # L (t_attn + t_ffn + 2a) against L (tau_attn + tau_ffn), less one tau_ffn in T.
    times = layers(10, 15, 2)
    pinned = {2 * layer + 1 for layer in range(0, LAYERS, every)}
    missing_s = LAYERS * (10 + 30) - LAYERS * (10 + 15 + 4) - 30 * len(pinned)
    assert wait_s([10, 30] * LAYERS, times, pinned, 120) == pytest.approx(max(0, missing_s), abs=15)
    assert wait_s([10, 30] * LAYERS, times, range(2 * LAYERS), 0) == 0


@given(
    sizes=st.lists(st.integers(1, 50), min_size=2, max_size=30),
    work=st.floats(0, 3),
    sum_s=st.floats(0, 5),
    room=st.floats(1, 5),
)
def test_bounds(sizes: list[int], work: float, sum_s: float, room: float) -> None:
    times = PassTimes(tuple(size * work for size in sizes), (sum_s,) * len(sizes), 1.0)
    waited = wait_s(sizes, times, (), int(max(sizes) * room))
    assert waited >= sum(sizes) - times.work_s - 1e-6 * sum(sizes), "the disk is no faster than it is"
    assert waited <= sum(sizes) * 1.001, "no more than reading everything while nothing is computed"


class PacedReader(PieceReader):
    """Reads one piece after the other at a known rate."""

    def __init__(self, stored: StoredWeights, bytes_per_s: float) -> None:
        super().__init__(stored)
        self._bytes_per_s, self._data = bytes_per_s, stored.paths[0].read_bytes()
        self._orders: queue.SimpleQueue[tuple[StoredPiece, memoryview, PendingRead] | None] = queue.SimpleQueue()
        self._pacer = threading.Thread(target=self._pace, daemon=True)
        self._pacer.start()

    def start(self, piece: StoredPiece, out: memoryview, on_done: Callable[[Exception | None], None]) -> PendingRead:
        pending = PendingRead(on_done)
        self._orders.put((piece, out, pending))
        return pending

    def close(self) -> None:
        self._orders.put(None)
        self._pacer.join()
        super().close()

    def _pace(self) -> None:
        ready_s = 0.0
        while (item := self._orders.get()) is not None:
            piece, out, pending = item
            ready_s = max(ready_s, time.perf_counter()) + piece.arena_bytes / self._bytes_per_s
            time.sleep(max(0.0, ready_s - time.perf_counter()))
            start = piece.extents[0].file_offset
            out[:] = self._data[start : start + len(out)]
            out.release()
            pending.on_done(Cancelled("") if pending.is_cancelled else None)


def work_through(window: Window, compute_s: Sequence[float], gap_s: float) -> float:
    """One pass; returns how long it took."""
    started = time.perf_counter()
    for index, held_s in enumerate(compute_s):
        with window.hold(index):
            time.sleep(held_s)
        time.sleep(gap_s)
    return time.perf_counter() - started


@pytest.mark.parametrize(("budget", "work"), ((44, 0.5), (44, 1.0), (100, 1.0), (150, 0.8)))
def test_a_real_window_takes_as_long(tmp_path: Path, budget: int, work: float) -> None:
    """One of some attempts must, each slower than the one before: sleeping is late by some milliseconds on a busy
    machine, whatever it is for."""
    stored, _ = store(tmp_path / "w", [8, 16, 16, 5] * 5)
    assert any(deviation(stored, budget * PAGE_BYTES, work, rate) < 0.1 for rate in (1500, 1500, 400, 100))


def deviation(stored: StoredWeights, budget_bytes: int, work: float, pages_per_s: float) -> float:
    """By what part a pass takes longer or shorter than foretold; computing takes ``work`` times as long as reading."""
    rate = pages_per_s * PAGE_BYTES
    n_bytes = [piece.arena_bytes for piece in stored.pieces]
    compute_s = [size * work / rate for size in n_bytes]
    with Window(stored, PacedReader(stored, rate), budget_bytes) as window:
        took_s = [work_through(window, compute_s, 3 / pages_per_s) for _ in range(4)][1:]
        with window.hold(0):
            stats, plan = window.stats(), window._plan
            times = window._clock.times(stats.read_bytes / stats.reading_s)
    foretold_s = times.work_s + wait_s(n_bytes, times, plan.pinned, plan.ring_bytes)
    return abs(statistics.median(took_s) / foretold_s - 1)


def test_the_clock_counts_complete_passes_only() -> None:
    clock = PassClock(3)
    for order in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0, 1, 2], [2, 1, 0], [0, 1, 2], [0]):
        for index in order:
            clock.ask(index)
            clock.ready()
            clock.release()
    assert clock.n_complete == 3
    times = clock.times(1.0)
    assert len(times.compute_s) == len(times.gap_s) == 3 and min(times.compute_s + times.gap_s) > 0


def test_the_clock_leaves_pieces_on_demand_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four pieces 1 and 2 are on demand: what they take is the gap before 3, less the wait for the disk."""
    now_s = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now_s[0])
    clock = PassClock(4, {1, 2})
    for _ in range(3):
        for index, held_s, experts_s, waited_s in ((0, 2.0, 5.0, 4.0), (3, 3.0, 0.5, 0.0)):
            clock.ask(index)
            clock.ready()
            now_s[0] += held_s
            clock.release()
            now_s[0] += experts_s
            clock.leave_out(waited_s)
    assert clock.n_complete == 2
    assert clock.times(7.0) == PassTimes((2.0, 0.0, 0.0, 3.0), (1.0, 0.0, 0.0, 0.5), 7.0)


def test_another_plan_leaves_the_slots_as_they_are() -> None:
    sizes, experts = [8000, 16000, 500, 500, 4000] * 10, {number for number in range(50) if number % 5 in (2, 3)}
    crowded = PinPlan(frozenset({0, 1, 4, 5, 6, 9}), 56_000, 74_000, 3, 500)
    times = PassTimes((0.3, 0.6, 0.0, 0.0, 0.1) * 10, (0.0,) * 50, 10_000.0)
    better = plan_again(sizes, times, crowded, lambda _: (), experts)
    dense = plan_again(
        [8000, 16000, 4000] * 10,
        PassTimes((0.3, 0.6, 0.1) * 10, (0.0,) * 30, 10_000.0),
        PinPlan(frozenset(range(6)), 56_000, 74_000),
    )
    assert better is not None and dense is not None
    assert (better.n_slots, better.slot_bytes, better.ring_bytes) == (3, 500, dense.ring_bytes)
    order = [index for index in range(50) if index not in experts]
    assert better.pinned == {order[number] for number in dense.pinned}


def test_another_plan_must_be_worth_reading_its_pins() -> None:
    sizes = [8000, 16000, 4000] * 10
    crowded = PinPlan(frozenset(range(6)), 56_000, 74_000)
    times = PassTimes((0.3, 0.6, 0.1) * 10, (0.0,) * 30, 10_000.0)
    better = plan_again(sizes, times, crowded)
    assert better is not None and better.pinned_bytes + better.ring_bytes == 130_000
    assert wait_s(sizes, times, better.pinned, better.ring_bytes) < wait_s(sizes, times, crowded.pinned, 74_000)
    assert plan_again(sizes, times, better) is None
    busy = PassTimes((2.0,) * 30, (0.0,) * 30, 10_000.0)
    assert plan_again(sizes, busy, plan_pins(sizes, 130_000)) is None, "nobody waits"


def test_another_plan_is_judged_with_what_lent_memory_holds() -> None:
    sizes = [8000, 16000, 4000] * 10
    crowded = PinPlan(frozenset(range(6)), 56_000, 74_000)
    times = PassTimes((0.3, 0.6, 0.1) * 10, (0.0,) * 30, 10_000.0)
    assert plan_again(sizes, times, crowded, lambda _: range(6, 30)) is None, "nothing streams"
    better = plan_again(sizes, times, crowded, lambda _: (9, 20))
    assert better is not None
    waits_s = [wait_s(sizes, times, plan.pinned | {9, 20}, plan.ring_bytes) for plan in (crowded, better)]
    assert waits_s[1] < waits_s[0]


@pytest.mark.parametrize("budget_pages", (100, 170))
def test_the_arena_is_laid_out_anew_between_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget_pages: int
) -> None:
    sizes = [8, 16, 4] * 10
    stored, contents = store(tmp_path / "w", sizes)
    pinned = frozenset({1, 4, 5, 29})
    n_bytes = sum(sizes[index] for index in pinned) * PAGE_BYTES
    other = PinPlan(pinned, n_bytes, budget_pages * PAGE_BYTES - n_bytes)
    monkeypatch.setattr(window_module, "plan_again", lambda *_: other)
    with Window(stored, PieceReader(stored), budget_pages * PAGE_BYTES) as window:
        before = window.stats()
        for number in range(9):
            assert (window._plan is other) == (number > 4), number
            run_pass(window, contents)
        after = window.stats()
    assert before.pinned_bytes + before.ring_bytes == after.pinned_bytes + after.ring_bytes
    assert after.pinned_pieces == 4


@pytest.mark.parametrize("n_kept", (60, 20, 0))
def test_memory_that_is_lent_stays_lent_when_the_arena_is_laid_out_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_kept: int
) -> None:
    """Pages of the loan in which the first plan had no piece, and those that were taken back before."""
    sizes = [8, 16, 4] * 10
    stored, contents = store(tmp_path / "w", sizes)
    other = PinPlan(frozenset(), 0, 100 * PAGE_BYTES)
    monkeypatch.setattr(window_module, "plan_again", lambda *_: other)
    with Window(stored, PieceReader(stored), 100 * PAGE_BYTES, 67 * PAGE_BYTES) as window:
        before = window.stats()
        window.shrink((100 + n_kept) * PAGE_BYTES)
        for _ in range(6):
            run_pass(window, contents)
        assert window._plan is other
        for n_lent in (n_kept, 67):
            window.grow((100 + n_lent) * PAGE_BYTES)
            pinned_bytes = window.stats().pinned_bytes
            assert n_lent * PAGE_BYTES - 16 * PAGE_BYTES < pinned_bytes <= n_lent * PAGE_BYTES
            run_pass(window, contents)
            run_pass(window, contents)
    assert before.pinned_bytes > 67 * PAGE_BYTES, "the first plan had pins of its own"
