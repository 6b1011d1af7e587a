"""A window that is interrupted, or replaced by another: what can stay in memory is not read again."""

import dataclasses
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.weights.streaming.test_window import SlowReader, bytes_of, run_pass, store
from tpi.errors import Cancelled
from tpi.weights.files import PAGE_BYTES
from tpi.weights.stored import StoredPiece, StoredWeights
from tpi.weights.streaming.window import Window

WAIT_S = 20.0


def all_loaded(window: Window) -> None:
    """Waits until everything is pinned and read."""
    deadline_s = time.monotonic() + WAIT_S
    while window.try_resident() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def chosen(stored: StoredWeights, contents: list[bytes], picks: list[int]) -> tuple[StoredWeights, list[bytes]]:
    """The pieces ``picks`` of ``stored``, as pieces of their own in the same file."""
    pieces = tuple(dataclasses.replace(stored.pieces[pick], index=index) for index, pick in enumerate(picks))
    return StoredWeights(stored.paths, pieces), [contents[pick] for pick in picks]


def test_a_wait_is_interrupted_and_others_follow_until_it_is_allowed_again(tmp_path: Path) -> None:
    stored, contents = store(tmp_path / "w", [2, 2, 2, 2, 2, 2])
    is_slow = [True]
    reader = SlowReader(stored, lambda: 0.3 if is_slow[0] else 0.0)
    with Window(stored, reader, 4 * PAGE_BYTES) as window:
        threading.Timer(0.05, window.interrupt).start()
        started = time.monotonic()
        with pytest.raises(Cancelled), window.hold(0):
            pass
        assert time.monotonic() - started < 0.29, "it did not wait for the disk"
        is_slow[0] = False
        for index in (1, 0, 5):
            with pytest.raises(Cancelled), window.hold(index):
                pass
        window.allow()
        for _ in range(3):
            run_pass(window, contents)
        assert window.use().held_bytes == 0


def test_a_piece_that_is_held_stays_while_it_is_interrupted(tmp_path: Path) -> None:
    stored, contents = store(tmp_path / "w", [3, 3, 3])
    with Window(stored, SlowReader(stored, lambda: 0.0), 3 * PAGE_BYTES) as window:
        with window.hold(1) as held:
            window.interrupt()
            assert bytes_of(held, len(contents[1])) == contents[1]
        with pytest.raises(Cancelled), window.hold(2):
            pass
        window.allow()
        run_pass(window, contents)


def test_equal_pieces_are_not_read_again(tmp_path: Path) -> None:
    """All of the old window's pieces are in memory; the new one has some of them, in another order, and others."""
    stored, contents = store(tmp_path / "w", [2, 3, 1, 4, 2, 5])
    old = Window(stored, SlowReader(stored, lambda: 0.0), stored.arena_bytes)
    all_loaded(old)
    fresh, wanted = chosen(stored, contents, [5, 0, 3, 1])
    legacy = old.bequeath({0: 5, 2: 3})
    reader = SlowReader(fresh, lambda: 0.0)
    with Window(fresh, reader, fresh.arena_bytes, legacy=legacy) as window:
        legacy.close()
        legacy.close()
        all_loaded(window)
        assert sorted(reader.started) == [1, 3]
        run_pass(window, wanted)
        assert window.stats().read_bytes == (2 + 3) * PAGE_BYTES


def test_what_streams_in_the_old_window_or_in_the_new_one_is_read(tmp_path: Path) -> None:
    stored, contents = store(tmp_path / "w", [2] * 8)
    for budgets in ((16, 6), (6, 16)):
        old = Window(stored, SlowReader(stored, lambda: 0.0), budgets[0] * PAGE_BYTES)
        run_pass(old, contents)
        pinned = set(old._plan.pinned)
        legacy = old.bequeath({index: index for index in range(8)})
        reader = SlowReader(stored, lambda: 0.0)
        with Window(stored, reader, budgets[1] * PAGE_BYTES, legacy=legacy) as window:
            legacy.close()
            inherited = pinned & window._plan.pinned
            run_pass(window, contents)
            run_pass(window, contents)
            assert inherited and not inherited & set(reader.started)
            assert set(range(8)) - inherited <= set(reader.started)


def test_pieces_that_lie_otherwise_are_read(tmp_path: Path) -> None:
    """The same bytes, but the second part begins somewhere else, or the place is larger."""
    stored, contents = store(tmp_path / "w", [2, 2, 2])
    old = Window(stored, SlowReader(stored, lambda: 0.0), stored.arena_bytes)
    all_loaded(old)
    same, moved, larger = (stored.pieces[index] for index in range(3))
    pieces = (
        same,
        StoredPiece(1, moved.extents, moved.arena_bytes, (0, 64)),
        StoredPiece(2, larger.extents, larger.arena_bytes + PAGE_BYTES, larger.part_offsets),
    )
    other = StoredWeights(stored.paths, pieces)
    legacy = old.bequeath({0: 0, 1: 1, 2: 2})
    reader = SlowReader(other, lambda: 0.0)
    with Window(other, reader, other.arena_bytes, legacy=legacy) as window:
        legacy.close()
        all_loaded(window)
        assert reader.started == [1, 2]
        run_pass(window, contents)


def test_pieces_that_were_not_there_yet_are_read(tmp_path: Path) -> None:
    """The old window was still reading: it stops, and nobody waits for what it had not begun."""
    stored, contents = store(tmp_path / "w", [2] * 40)
    slow = SlowReader(stored, lambda: 0.02)
    old = Window(stored, slow, stored.arena_bytes)
    legacy = old.bequeath({index: index for index in range(40)})
    n_started = len(slow.started)
    reader = SlowReader(stored, lambda: 0.0)
    with Window(stored, reader, stored.arena_bytes, legacy=legacy) as window:
        legacy.close()
        all_loaded(window)
        run_pass(window, contents)
    assert len(slow.started) == n_started and len(reader.started) > 0


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    budgets=st.tuples(st.floats(0, 1.1), st.floats(0, 1.1)),
    lent=st.floats(0, 1),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_whatever_is_inherited_the_bytes_are_right(
    sizes: list[int], budgets: tuple[float, float], lent: float, seed: int, data: st.DataObject
) -> None:
    picks = data.draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=12, unique=True))
    known = data.draw(st.sets(st.integers(0, len(picks) - 1)))
    dice = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        stored, contents = store(Path(folder) / "w", sizes)
        fresh, wanted = chosen(stored, contents, picks)

        def budget(weights: StoredWeights, part: float) -> int:
            least = Window.minimum_bytes(weights)
            return int(least + part * (weights.arena_bytes - least))

        lent_bytes = int(lent * stored.arena_bytes)
        old = Window(stored, SlowReader(stored, lambda: dice.random() * 0.0005), budget(stored, budgets[0]), lent_bytes)
        run_pass(old, contents[: dice.randrange(len(contents) + 1)])
        legacy = old.bequeath({index: picks[index] for index in known})
        lent_bytes = int(lent * fresh.arena_bytes)
        with Window(fresh, SlowReader(fresh, lambda: 0.0), budget(fresh, budgets[1]), lent_bytes, legacy) as window:
            legacy.close()
            for stop in (len(wanted), dice.randrange(len(wanted) + 1), len(wanted)):
                run_pass(window, wanted[:stop])
            window.shrink(budget(fresh, budgets[1]))
            run_pass(window, wanted)


MEASURE = """
import pathlib, sys
from tests.unit.weights.streaming.test_legacy import StoredPiece, StoredWeights, Window, all_loaded, chosen
from tpi import observe
from tpi.weights.stored import Extent
from tpi.weights.streaming.disk import PieceReader
path, n, size = pathlib.Path(sys.argv[1]), 32, 3 << 20
pieces = tuple(StoredPiece(i, (Extent(0, i * size, size, 0),), size, (0,)) for i in range(n))
stored = StoredWeights((path,), pieces)
before = observe.resident_bytes()
old = Window(stored, PieceReader(stored), stored.arena_bytes)
all_loaded(old)
full = observe.resident_bytes() - before
picks = list(range(0, n, 2))
fresh, _ = chosen(stored, [b""] * n, picks)
legacy = old.bequeath({i: pick for i, pick in enumerate(picks)})
kept = observe.resident_bytes() - before
observe.reset_peak()
window = Window(fresh, PieceReader(fresh), fresh.arena_bytes, legacy=legacy)
all_loaded(window)
peak = observe.peak_resident_bytes() - before
legacy.close()
now = observe.resident_bytes() - before
assert window.stats().read_bytes == 0
print(full, kept, peak, now)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_rest_is_given_back_and_no_more_than_a_piece_is_there_twice(tmp_path: Path) -> None:
    path, piece = tmp_path / "w", 3 << 20
    path.write_bytes(bytes(range(256)) * (32 * piece // 256))
    command = [sys.executable, "-c", MEASURE, str(path)]
    root = Path(__file__).parents[4]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    full, kept, peak, now = map(int, result.stdout.split())
    slack = 2_000_000
    assert 32 * piece - slack < full < 32 * piece + slack
    assert kept < 16 * piece + slack, "half of the pieces are of no use to the successor"
    assert peak < 17 * piece + slack
    assert 16 * piece - slack < now < 16 * piece + slack
