"""The window gives the right bytes, whatever the budget, the order and the delays, within its budget."""

import ctypes
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpi.errors import Cancelled, MemoryBudgetError, ModelFileError
from tpi.weights.files import PAGE_BYTES
from tpi.weights.stored import Extent, StoredPiece, StoredWeights
from tpi.weights.streaming.arena import HeldPiece
from tpi.weights.streaming.disk import PendingRead, PieceReader
from tpi.weights.streaming.window import Window


def store(path: Path, sizes: list[int], seed: int = 0) -> tuple[StoredWeights, list[bytes]]:
    """Pieces of random bytes of ``sizes`` pages in a file."""
    contents = [np.random.default_rng((seed, i)).bytes(size * PAGE_BYTES) for i, size in enumerate(sizes)]
    path.write_bytes(b"".join(contents))
    pieces, offset = [], 0
    for index, content in enumerate(contents):
        extent = Extent(0, offset, len(content), 0)
        pieces.append(StoredPiece(index, (extent,), len(content), (0, len(content) - 64)))
        offset += len(content)
    return StoredWeights((path,), tuple(pieces)), contents


def bytes_of(held: HeldPiece, n_bytes: int) -> bytes:
    return ctypes.string_at(held.address, n_bytes)


class SlowReader(PieceReader):
    """Delays each read by what ``delay_s`` says, and fails those that ``fails`` names, once each."""

    def __init__(self, stored: StoredWeights, delay_s: Callable[[], float], fails: set[int] | None = None) -> None:
        self._delay_s = delay_s
        self.fails = fails or set()
        self.started: list[int] = []
        super().__init__(stored)

    def start(self, piece: StoredPiece, out: memoryview, on_done: Callable[[Exception | None], None]) -> PendingRead:
        self.started.append(piece.index)

        def later(error: Exception | None) -> None:
            delay_s = self._delay_s()
            if delay_s:
                time.sleep(delay_s)
            if piece.index in self.fails:
                self.fails.discard(piece.index)
                error = ModelFileError(f"cannot read piece {piece.index}")
            on_done(error)

        return super().start(piece, out, later)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=14),
    budget=st.floats(0, 1.1),
    seed=st.integers(0, 1000),
    max_delay_s=st.sampled_from((0.0, 0.0005, 0.002)),
    data=st.data(),
)
def test_right_bytes_under_every_budget(
    sizes: list[int], budget: float, seed: int, max_delay_s: float, data: st.DataObject
) -> None:
    n = len(sizes)
    complete = st.just(list(range(n)))
    aborted = st.integers(0, n).map(lambda stop: list(range(stop)))
    skipping = st.sets(st.integers(0, n - 1)).map(sorted)
    backwards = st.just(list(range(n))[::-1])
    passes = data.draw(st.lists(st.one_of(complete, aborted, skipping, backwards), min_size=1, max_size=8))
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        stored, contents = store(Path(folder) / "w", sizes)
        least = Window.minimum_bytes(stored)
        budget_bytes = int(least + budget * (stored.arena_bytes - least))
        reader = SlowReader(stored, lambda: dice.random() * max_delay_s)
        with Window(stored, reader, budget_bytes) as window:
            stats = window.stats()
            assert stats.pinned_bytes + stats.ring_bytes <= budget_bytes
            low, high = window._arena.address, window._arena.address + stats.pinned_bytes + stats.ring_bytes
            for order in passes:
                for index in order:
                    with window.hold(index) as held:
                        assert low <= held.address and held.address + len(contents[index]) <= high
                        assert held.part_addresses == (held.address, held.address + len(contents[index]) - 64)
                        assert bytes_of(held, len(contents[index])) == contents[index]
                        if dice.random() < 0.3:
                            time.sleep(max_delay_s * dice.random())
                        assert bytes_of(held, len(contents[index])) == contents[index]
        assert threading.active_count() < 20


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=14),
    budget=st.floats(0, 1),
    lent=st.floats(0, 1.2),
    steps=st.lists(st.floats(0, 1), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_lent_memory_is_given_back(sizes: list[int], budget: float, lent: float, steps: list[float], seed: int) -> None:
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        stored, contents = store(Path(folder) / "w", sizes)
        least = Window.minimum_bytes(stored)
        budget_bytes = int(least + budget * (stored.arena_bytes - least))
        lent_bytes = int(lent * stored.arena_bytes)
        with Window(stored, SlowReader(stored, lambda: dice.random() * 0.0005), budget_bytes, lent_bytes) as window:
            most = window.stats()
            for step in [1.0, *sorted(steps, reverse=True), 0.0, *steps, 1.0]:
                window.shrink(budget_bytes + int(step * lent_bytes))
                window.grow(budget_bytes + int(step * lent_bytes))
                stats = window.stats()
                assert stats.pinned_bytes + stats.ring_bytes <= budget_bytes + int(step * lent_bytes)
                for stop in (len(contents), dice.randrange(len(contents) + 1), len(contents)):
                    run_pass(window, contents[:stop])
            assert (stats.pinned_pieces, stats.pinned_bytes) == (most.pinned_pieces, most.pinned_bytes)


@pytest.fixture
def weights(tmp_path: Path) -> Iterator[tuple[StoredWeights, list[bytes]]]:
    yield store(tmp_path / "w", [2, 5, 3, 2, 5, 3, 2, 5, 3, 4])


def run_pass(window: Window, contents: list[bytes]) -> None:
    for index, content in enumerate(contents):
        with window.hold(index) as held:
            assert bytes_of(held, len(content)) == content


def test_everything_that_fits_is_read_once(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    reader = SlowReader(stored, lambda: 0)
    with Window(stored, reader, stored.arena_bytes) as window:
        for _ in range(3):
            run_pass(window, contents)
        stats = window.stats()
    assert sorted(reader.started) == list(range(len(contents)))
    assert (stats.pinned_pieces, stats.pinned_bytes, stats.streamed_bytes) == (10, stored.arena_bytes, 0)
    assert stats.read_bytes == stored.arena_bytes


def test_complete_passes_read_each_streamed_piece_once_a_pass(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    reader = SlowReader(stored, lambda: 0)
    with Window(stored, reader, 20 * PAGE_BYTES) as window:
        stats = window.stats()
        assert 0 < stats.pinned_pieces < len(contents)
        for _ in range(5):
            run_pass(window, contents)
        ahead = sum(reader.started.count(i) > 5 for i in range(len(contents)))
        assert sum(reader.started.count(i) in (1, 5, 6) for i in range(len(contents))) == len(contents)
        assert ahead * PAGE_BYTES <= stats.ring_bytes
    assert sum(reader.started.count(i) == 1 for i in range(len(contents))) == stats.pinned_pieces


def test_reading_goes_on_while_a_piece_is_held(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, _contents = weights
    reader = SlowReader(stored, lambda: 0)
    with Window(stored, reader, 11 * PAGE_BYTES) as window, window.hold(0):
        deadline = time.monotonic() + 5
        while window.stats().read_bytes < 10 * PAGE_BYTES and time.monotonic() < deadline:
            time.sleep(0.001)
        assert window.stats().read_bytes == 10 * PAGE_BYTES, "pieces 1 and 2 wait in the ring"
        assert reader.started == [0, 1, 2]


def settle(window: Window) -> list[int]:
    """Waits until the reader has nothing to do; returns the pieces in the ring."""
    deadline = time.monotonic() + 5
    while window.use().loading_bytes and time.monotonic() < deadline:
        time.sleep(0.001)
    return [slot.piece.index for slot in window._reads.places.queue]


def test_the_head_that_was_not_wanted_is_dropped(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    reader = SlowReader(stored, lambda: 0)
    with Window(stored, reader, 11 * PAGE_BYTES) as window:
        for _ in range(4):
            run_pass(window, contents[:-1])
            assert settle(window)[:2] == [9, 0]
            started = len(reader.started)
            with window.hold(0):
                assert 0 not in reader.started[started:], "what the next pass needs is kept"
        run_pass(window, contents)


def test_an_aborted_pass_starts_again(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    with Window(stored, SlowReader(stored, lambda: 0), 11 * PAGE_BYTES) as window:
        for stop in range(len(contents)):
            run_pass(window, contents[:stop])
        run_pass(window, contents)


def test_too_small_a_budget_names_the_minimum(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, _ = weights
    reader = PieceReader(stored)
    with pytest.raises(MemoryBudgetError, match="20,480"):
        Window(stored, reader, 5 * PAGE_BYTES - 1)
    assert not reader._threads, "closed"


@pytest.mark.parametrize("budget_pages", (5, 14, 34))
def test_a_failed_read_surfaces_and_the_next_hold_tries_again(
    weights: tuple[StoredWeights, list[bytes]], budget_pages: int
) -> None:
    stored, contents = weights
    with Window(stored, SlowReader(stored, lambda: 0, {4}), budget_pages * PAGE_BYTES) as window:
        with pytest.raises(ModelFileError, match="cannot read piece 4"):
            for _ in range(2):
                run_pass(window, contents)
        for _ in range(2):
            run_pass(window, contents)


def test_a_file_that_shrinks_while_it_streams(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    with Window(stored, PieceReader(stored), 8 * PAGE_BYTES) as window:
        run_pass(window, contents)
        os.truncate(stored.paths[0], 20 * PAGE_BYTES)
        with pytest.raises(ModelFileError, match=r"w is truncated: it ends at byte 81,920"):
            for _ in range(2):
                run_pass(window, contents)


def test_close_wakes_a_waiting_hold_and_waits_for_a_held_piece(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, _contents = weights
    gate = threading.Event()
    reader = SlowReader(stored, lambda: float(gate.wait(10) and 0))
    window = Window(stored, reader, 12 * PAGE_BYTES)
    seen: list[str] = []

    def wait() -> None:
        try:
            with window.hold(0):
                seen.append("held")
        except Cancelled:
            seen.append("cancelled")

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    closer = threading.Thread(target=window.close)
    closer.start()
    thread.join(5)
    assert seen == ["cancelled"]
    gate.set()
    closer.join(5)
    assert not closer.is_alive()
    window.close()
    with pytest.raises(Cancelled), window.hold(0):
        pass


def test_memory_stays_while_it_is_held(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    window = Window(stored, PieceReader(stored), 12 * PAGE_BYTES)
    with window.hold(0) as held:
        closer = threading.Thread(target=window.close)
        closer.start()
        time.sleep(0.05)
        assert closer.is_alive()
        assert bytes_of(held, len(contents[0])) == contents[0]
    closer.join(5)
    assert not closer.is_alive()


def test_an_exception_inside_hold_frees_the_slot(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    with Window(stored, PieceReader(stored), 5 * PAGE_BYTES) as window:
        with pytest.raises(KeyError), window.hold(3):
            raise KeyError
        run_pass(window, contents)


def test_weights_that_fit_only_with_lent_memory_stream_later(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    reader = SlowReader(stored, lambda: 0)
    with Window(stored, reader, 20 * PAGE_BYTES, 40 * PAGE_BYTES) as window:
        for _ in range(3):
            run_pass(window, contents)
        assert sorted(reader.started) == list(range(len(contents)))
        assert window.try_resident() is None, "the memory is only lent"
        window.shrink(25 * PAGE_BYTES)
        run_pass(window, contents)
        run_pass(window, contents)
        assert window.stats().pinned_pieces < len(contents)
        assert window.stats().pinned_bytes + window.stats().ring_bytes <= 25 * PAGE_BYTES
        assert sum(reader.started.count(i) == 1 for i in range(len(contents))) == window.stats().pinned_pieces


def test_memory_that_is_lent_again_holds_the_same_pieces(weights: tuple[StoredWeights, list[bytes]]) -> None:
    stored, contents = weights
    reader = SlowReader(stored, lambda: 0)
    with Window(stored, reader, 20 * PAGE_BYTES, 40 * PAGE_BYTES) as window:
        for _ in range(3):
            run_pass(window, contents)
            window.shrink(20 * PAGE_BYTES)
            run_pass(window, contents)
            window.grow(60 * PAGE_BYTES)
            assert window.stats().pinned_pieces == len(contents)
            run_pass(window, contents)
            n_started = len(reader.started)
            run_pass(window, contents)
            assert len(reader.started) == n_started, "everything is there"
        window.grow(99 * PAGE_BYTES)
        assert window.stats().pinned_bytes + window.stats().ring_bytes <= 60 * PAGE_BYTES, "no more than at first"


MEASURE = """
import sys, pathlib
from tests.unit.weights.streaming.test_window import Window, PieceReader, StoredWeights, StoredPiece, Extent
from tpi import observe
path, n, size, budget, lent = pathlib.Path(sys.argv[1]), 32, 3 << 20, 20 << 20, int(sys.argv[2]) << 20
pieces = tuple(StoredPiece(i, (Extent(0, i * size, size, 0),), size, (0,)) for i in range(n))
stored = StoredWeights((path,), pieces)
before = observe.resident_bytes()
observe.reset_peak()
with Window(stored, PieceReader(stored), budget, lent) as window:
    for used in (lent, lent // 2, 0, lent, 0, 0):
        window.shrink(budget + used)
        window.grow(budget + used)
        for i in range(n):
            with window.hold(i):
                pass
    assert window.stats().pinned_pieces > 1
    now = observe.resident_bytes() - before
print(observe.peak_resident_bytes() - before, now)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_resident_memory_grows_by_the_budget_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(bytes(32 * (3 << 20)))
    root = Path(__file__).parents[4]
    # Places of 3 MiB; other memory of the process may shrink a little meanwhile.
    for lent in (0, 40, 60):
        command = [sys.executable, "-c", MEASURE, str(path), str(lent)]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
        peak, now = map(int, result.stdout.split())
        assert (17 + lent << 20) - 3_000_000 < peak < (20 + lent << 20) + 3_000_000
        assert (17 << 20) - 3_000_000 < now < (20 << 20) + 3_000_000


def test_use_accounts_for_every_byte(tmp_path: Path) -> None:
    stored, _ = store(tmp_path / "file", [2, 2, 2, 2, 2, 2])
    with Window(stored, SlowReader(stored, lambda: 0.001), 8 * PAGE_BYTES) as window:
        pinned_bytes = window.stats().pinned_bytes
        for index in (*range(6), *range(6)):
            with window.hold(index):
                use = window.use()
                assert use.held_bytes == 2 * PAGE_BYTES
                others = use.pinned_bytes, use.loaded_bytes, use.loading_bytes, use.free_bytes
                assert min(others) >= 0 and sum(others) == 6 * PAGE_BYTES
                assert use.pinned_bytes <= pinned_bytes
        assert window.use().held_bytes == 0
