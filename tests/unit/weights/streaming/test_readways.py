"""A disk is tried once per file, and only where much is streamed from it."""

import os
from pathlib import Path

import pytest

from tests.unit.weights.streaming.test_window import store
from tpi.errors import ModelFileError
from tpi.weights.files import PAGE_BYTES
from tpi.weights.stored import StoredWeights
from tpi.weights.streaming import readways
from tpi.weights.streaming.disk import PieceReader, ReadWay
from tpi.weights.streaming.readways import find_way, noted_rate, try_ways


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredWeights:
    monkeypatch.setattr(readways, "_FEW_BYTES", 100 * PAGE_BYTES)
    return store(tmp_path / "w", [40, 100, 60])[0]


def count_trials(monkeypatch: pytest.MonkeyPatch, way: ReadWay) -> list[int]:
    trials = []

    def pretend(_: StoredWeights, memory_bytes: int) -> ReadWay:
        trials.append(memory_bytes)
        return way

    monkeypatch.setattr(readways, "try_ways", pretend)
    return trials


def test_it_is_tried_again_only_if_the_file_changes(
    stored: StoredWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, way = tmp_path / "new" / "w.disk", ReadWay(1 << 20, 4, 1.5e9)
    trials = count_trials(monkeypatch, way)
    budget = 120 * PAGE_BYTES
    assert find_way(stored, budget, note) == find_way(stored, budget, note) == way
    assert trials == [budget] and [path.name for path in note.parent.iterdir()] == ["w.disk"]
    os.utime(stored.paths[0])
    find_way(stored, budget, note)
    note.write_bytes(b'{"files": 3}')
    find_way(stored, budget, note)
    find_way(stored, budget, None)
    assert len(trials) == 4


def test_the_rate_that_was_noted_last(stored: StoredWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert noted_rate(tmp_path / "missing") == noted_rate(tmp_path) == 0.0
    for age, (name, rate) in enumerate([("unknown", 0.0), ("new", 1e9), ("old", 5e8)]):
        count_trials(monkeypatch, ReadWay(1 << 20, 4, rate))
        os.utime(stored.paths[0], ns=(0, 10**18 - age))
        find_way(stored, 120 * PAGE_BYTES, tmp_path / f"{name}.disk")
    (tmp_path / "damaged.disk").write_bytes(b"{")
    assert noted_rate(tmp_path) == 1e9


def test_what_is_read_once_or_small_is_not_tried(
    stored: StoredWeights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = count_trials(monkeypatch, ReadWay(1, 1))
    assert find_way(stored, stored.arena_bytes, tmp_path / "note") == ReadWay()
    monkeypatch.setattr(readways, "_FEW_BYTES", 201 * PAGE_BYTES)
    assert find_way(stored, 120 * PAGE_BYTES, tmp_path / "note") == ReadWay()
    assert not trials and not (tmp_path / "note").exists()


def test_a_trial_measures(stored: StoredWeights) -> None:
    way = try_ways(stored, 30 * PAGE_BYTES)
    assert way.bytes_per_s > 0 and way.chunk_bytes >= 1 << 20 and 1 <= way.n_readers <= 4
    os.truncate(stored.paths[0], 150 * PAGE_BYTES)
    with pytest.raises(ModelFileError, match="truncated"):
        try_ways(stored, 30 * PAGE_BYTES)


def test_a_slow_disk_is_left_alone_soon(stored: StoredWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readways, "_LIMIT_S", 0.0)
    way = try_ways(stored, 30 * PAGE_BYTES)
    assert (way.chunk_bytes, way.n_readers) == (ReadWay().chunk_bytes, ReadWay().n_readers) and way.bytes_per_s > 0


def test_where_direct_reads_are_refused(stored: StoredWeights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readways, "PieceReader", lambda stored, way: PieceReader(stored, way, direct=False))
    assert try_ways(stored, 30 * PAGE_BYTES) == ReadWay()
