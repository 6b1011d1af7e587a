"""A window of pieces that every pass needs and of pieces on demand: the right bytes, within the budget, every time."""

import mmap
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.weights.streaming.pooling import store_experts
from tests.unit.weights.streaming.test_legacy import all_loaded
from tests.unit.weights.streaming.test_window import SlowReader, bytes_of
from tpi.errors import Cancelled, MemoryBudgetError, ModelFileError
from tpi.weights.files import PAGE_BYTES
from tpi.weights.stored import StoredWeights
from tpi.weights.streaming import reads
from tpi.weights.streaming import window as window_module
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.pins import PinPlan
from tpi.weights.streaming.window import Window


@dataclass(frozen=True)
class Case:
    """Sizes in pages, which pieces are on demand, and how the window is opened and used."""

    sizes: list[int]
    on_demand: frozenset[int]
    least_slots: int
    budget: float
    lent: float
    seed: int
    delay_s: float
    in_flight_pages: int

    @contextmanager
    def window(self, fails: set[int], lent_bytes: int = 0) -> Iterator[tuple[Window, list[bytes], int]]:
        """Opens the window; gives it with the pieces' bytes and its budget."""
        dice = random.Random(self.seed)
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(reads, "_IN_FLIGHT_BYTES", self.in_flight_pages * PAGE_BYTES)
            stored, contents = store_experts(Path(folder) / "w", self.sizes, self.on_demand)
            least = Window.minimum_bytes(stored, self.least_slots)
            budget_bytes = int(least + self.budget * (stored.arena_bytes - least))
            reader = SlowReader(stored, lambda: dice.random() * self.delay_s, fails)
            with Window(stored, reader, budget_bytes, lent_bytes, least_slots=self.least_slots) as window:
                yield window, contents, budget_bytes

    def holds(self, dice: random.Random) -> Iterator[tuple[int, list[int]]]:
        """What is held, with hints that are right, wrong, or of no use; some passes are not complete."""
        n = len(self.sizes)
        for _ in range(4):
            stop = n if dice.random() < 0.7 else dice.randrange(n + 1)
            for index in range(stop):
                if index not in self.on_demand:
                    yield index, dice.choices(range(n), k=dice.choice((0, 0, 3)))
                elif dice.random() < 0.7:
                    chosen = dice.choices(sorted(self.on_demand), k=dice.randrange(1, 6))
                    for number, expert in enumerate(chosen):
                        wrong = dice.choices(range(-1, n + 1), k=dice.choice((0, 0, 2)))
                        yield expert, [*wrong, *chosen[number + 1 :]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=16))
    return Case(
        sizes,
        draw(st.frozensets(st.integers(0, len(sizes) - 1))),
        draw(st.integers(1, 5)),
        draw(st.floats(0, 1)),
        draw(st.sampled_from((0.0, 0.3, 1.0))),
        draw(st.integers(0, 1000)),
        draw(st.sampled_from((0.0, 0.0005))),
        draw(st.sampled_from((1, 6, 1000))),
    )


def check_memory(window: Window, budget_bytes: int, lent_bytes: int) -> None:
    """Nothing lies outside of the memory or above something else, and no more is used than there may be."""
    with window._lock:
        slots = [*window._reads.places.slots(), *window._reads.pool.slots()]
        spans = sorted((slot.offset, slot.offset + slot.piece.arena_bytes) for slot in slots)
        use, stats = window.use(), window.stats()
    assert all(stop <= start for (_, stop), (start, _) in pairwise(spans))
    assert stats.total_bytes <= budget_bytes + lent_bytes
    used = use.pinned_bytes + use.loaded_bytes + use.loading_bytes + use.held_bytes
    assert use.free_bytes >= 0 and used + use.free_bytes == stats.total_bytes


@settings(max_examples=120, deadline=None)
@given(case=cases())
def test_right_bytes_within_every_budget(case: Case) -> None:
    dice, lent_bytes = random.Random(case.seed), int(case.lent * sum(case.sizes)) * PAGE_BYTES
    with case.window(set(), lent_bytes) as (window, contents, budget_bytes):
        n_bytes = len(window._arena._mapping)
        assert lent_bytes or n_bytes <= max(mmap.PAGESIZE, budget_bytes)
        n_demanded, last = 0, -1
        for index, hints in case.holds(dice):
            if index not in case.on_demand:
                if index <= last:
                    (window.shrink if dice.random() < 0.5 else window.grow)(
                        budget_bytes + int(dice.random() * lent_bytes)
                    )
                last = index
            with window.hold(index, hints) as held:
                assert 0 <= held.address - window._arena.address <= n_bytes - len(contents[index])
                assert bytes_of(held, len(contents[index])) == contents[index]
                check_memory(window, budget_bytes, lent_bytes)
                if dice.random() < 0.2:
                    time.sleep(case.delay_s * dice.random())
                assert bytes_of(held, len(contents[index])) == contents[index]
            n_demanded += index in case.on_demand
        stats = window.stats()
        assert stats.demanded == n_demanded >= stats.hits


@settings(max_examples=60, deadline=None)
@given(case=cases(), data=st.data())
def test_whatever_fails_is_read_again(case: Case, data: st.DataObject) -> None:
    """Each failure is told once; on demand, only where the piece is held."""
    fails = data.draw(st.sets(st.integers(0, len(case.sizes) - 1), max_size=4))
    told = list[int]()
    with case.window(set(fails)) as (window, contents, _):
        is_all_pinned = window.stats().pool_bytes == 0
        for index, hints in case.holds(random.Random(case.seed)):
            while True:
                try:
                    with window.hold(index, hints) as held:
                        assert bytes_of(held, len(contents[index])) == contents[index]
                    break
                except ModelFileError as error:
                    told.append(int(str(error).split()[-1]))
                    assert told[-1] == index or told[-1] not in case.on_demand or is_all_pinned
    assert len(set(told)) == len(told) and fails >= set(told)


@settings(max_examples=40, deadline=None)
@given(case=cases())
def test_interrupted_at_any_time(case: Case) -> None:
    dice = random.Random(case.seed)
    with case.window(set()) as (window, contents, _):
        for index, hints in case.holds(dice):
            if dice.random() < 0.3:
                window.interrupt()
                with pytest.raises(Cancelled), window.hold(dice.randrange(len(contents)), hints):
                    pass
                window.allow()
            with window.hold(index, hints) as held:
                assert bytes_of(held, len(contents[index])) == contents[index]


LAYERS = [2, *[3] * 6] * 4
"""Sizes in pages of four layers: a piece of every pass and six experts."""
EXPERTS = frozenset(index for index in range(len(LAYERS)) if index % 7)


@pytest.fixture
def layers(tmp_path: Path) -> tuple[StoredWeights, list[bytes]]:
    return store_experts(tmp_path / "w", LAYERS, EXPERTS)


def run_pass(window: Window, contents: list[bytes], experts: tuple[int, ...]) -> None:
    """Holds of each layer its first piece and some experts, by their number."""
    for layer in range(4):
        chosen = [7 * layer + 1 + expert for expert in experts]
        for number, index in enumerate([7 * layer, *chosen]):
            with window.hold(index, chosen[number:]) as held:
                assert bytes_of(held, len(contents[index])) == contents[index]


@pytest.mark.parametrize(("budget_pages", "n_slots", "n_pinned"), [(80, 24, 28), (79, 23, 4), (17, 3, 4), (11, 3, 0)])
def test_what_every_pass_needs_comes_first(
    layers: tuple[StoredWeights, list[bytes]], budget_pages: int, n_slots: int, n_pinned: int
) -> None:
    stored, contents = layers
    with Window(stored, SlowReader(stored, lambda: 0.0), budget_pages * PAGE_BYTES, least_slots=3) as window:
        stats = window.stats()
        assert stats.pinned_pieces == n_pinned
        assert stats.pool_bytes == (0 if n_pinned == 28 else n_slots * 3 * PAGE_BYTES)
        for experts in ((0, 1), (1, 2), (5, 3)):
            run_pass(window, contents, experts)


def test_a_resident_expert_is_not_read_again(layers: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = layers
    reader = SlowReader(stored, lambda: 0.0)
    with Window(stored, reader, (4 * 2 + 8 * 3) * PAGE_BYTES) as window:
        for _ in range(5):
            run_pass(window, contents, (2, 4))
        assert len(reader.started) == 4 + 8
        stats = window.stats()
        assert (stats.demanded, stats.hits >= 4 * 8) == (40, True)
        assert window.try_resident() is None


@pytest.mark.parametrize("least_slots", [1, 2, 6, 99])
def test_the_minimum_works_and_is_named(layers: tuple[StoredWeights, list[bytes]], least_slots: int) -> None:
    stored, contents = layers
    least = Window.minimum_bytes(stored, least_slots)
    assert least == min(sum(LAYERS), 2 + 3 * min(least_slots, 24)) * PAGE_BYTES
    with Window(stored, SlowReader(stored, lambda: 0.0), least, least_slots=least_slots) as window:
        for experts in ((0, 1, 2), (5, 2), (3,)):
            run_pass(window, contents, experts)
    reader = PieceReader(stored)
    with pytest.raises(MemoryBudgetError, match=f"{least:,}"):
        Window(stored, reader, least - 1, least_slots=least_slots)
    assert not reader._threads, "closed"


def test_loans_are_for_what_every_pass_needs(layers: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = layers
    for budget_pages, n_pinned in ((8, 4), (40, 4)):
        n_bytes = budget_pages * PAGE_BYTES
        with Window(stored, SlowReader(stored, lambda: 0.0), n_bytes, 50 * PAGE_BYTES, least_slots=2) as window:
            before = window.stats()
            assert before.pinned_pieces == n_pinned
            assert (before.total_bytes > n_bytes) == (budget_pages == 8)
            assert (len(window._arena._mapping) > n_bytes) == (budget_pages == 8)
            window.shrink(n_bytes)
            assert window.stats().total_bytes <= n_bytes
            run_pass(window, contents, (0, 1))
            window.grow(n_bytes + 50 * PAGE_BYTES)
            assert window.stats().pinned_pieces == n_pinned
            run_pass(window, contents, (0, 1))


def test_waits_for_experts_are_no_work_of_a_pass(layers: tuple[StoredWeights, list[bytes]]) -> None:
    """The disk needs 5 ms for a piece and does nothing else meanwhile. One of three attempts must: the machine is
    busy with other things, too."""
    stored, contents = layers

    def is_left_out() -> bool:
        with Window(stored, SlowReader(stored, lambda: 0.005), Window.minimum_bytes(stored)) as window:
            for experts in ((0, 1), (2, 3), (4, 5), (0, 1)):
                run_pass(window, contents, experts)
            times = window._clock.times(1.0)
            assert all(times.compute_s[index] == times.gap_s[index] == 0 for index in EXPERTS)
            return times.work_s < 0.5 * 8 * 0.005

    assert any(is_left_out() for _ in range(3))


def test_what_is_in_slots_stays_when_the_arena_is_laid_out_anew(
    layers: tuple[StoredWeights, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, contents = layers
    other = PinPlan(frozenset({7}), 2 * PAGE_BYTES, 4 * PAGE_BYTES, 8, 3 * PAGE_BYTES)
    monkeypatch.setattr(window_module, "plan_again", lambda *_: other)
    reader = SlowReader(stored, lambda: 0.0)
    with Window(stored, reader, (6 + 8 * 3) * PAGE_BYTES, least_slots=8) as window:
        for _ in range(7):
            run_pass(window, contents, (3, 1))
        assert window._plan is other
        assert sorted(index for index in reader.started if index in EXPERTS) == sorted(
            7 * layer + 1 + expert for layer in range(4) for expert in (3, 1)
        )


@pytest.mark.parametrize("budgets", [(80, 80), (80, 30), (30, 80), (30, 30)])
def test_a_successor_reads_what_was_not_pinned(
    layers: tuple[StoredWeights, list[bytes]], budgets: tuple[int, int]
) -> None:
    stored, contents = layers
    old = Window(stored, SlowReader(stored, lambda: 0.0), budgets[0] * PAGE_BYTES)
    run_pass(old, contents, (0, 1, 2))
    if budgets[0] == 80:
        all_loaded(old)
    legacy = old.bequeath({index: index for index in range(len(contents))})
    reader = SlowReader(stored, lambda: 0.0)
    with Window(stored, reader, budgets[1] * PAGE_BYTES, legacy=legacy) as window:
        legacy.close()
        for _ in range(2):
            run_pass(window, contents, (0, 1, 5))
        inherited = set(range(len(contents)) if budgets == (80, 80) else range(0, len(contents), 7))
        assert not inherited & set(reader.started)


def test_a_hold_of_a_resident_expert_takes_microseconds(tmp_path: Path) -> None:
    """However many there are; the best of many attempts, as the machine is busy with other things, too."""
    n = 2000
    stored, _ = store_experts(tmp_path / "w", [1] * (n + 1), range(1, n + 1))
    with Window(stored, PieceReader(stored), n * PAGE_BYTES) as window:
        chosen = [range(first, first + 8) for first in range(1, n - 8, 8)]
        for experts in chosen:
            with window.hold(experts[0], experts[1:]):
                pass
        for experts in chosen:
            for index in experts:
                with window.hold(index):
                    pass
        best_s = 1.0
        for experts in chosen:
            started = time.perf_counter()
            for number, index in enumerate(experts):
                with window.hold(index, experts[number + 1 :]):
                    pass
            best_s = min(best_s, (time.perf_counter() - started) / 8)
        assert best_s < 50e-6
