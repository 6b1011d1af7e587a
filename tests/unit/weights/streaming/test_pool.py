"""Pieces on demand: what is kept, what is read ahead, and what must go. Every step is the test's: reads end by hand."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.unit.weights.streaming.pooling import Holder, ManualReader, manual, store_experts, until
from tests.unit.weights.streaming.test_window import bytes_of
from tpi.errors import Cancelled, ModelFileError
from tpi.weights.files import PAGE_BYTES
from tpi.weights.streaming import reads
from tpi.weights.streaming.window import Window

Manual = tuple[Window, ManualReader]

DENSE, EXPERTS = 0, range(1, 9)
"""Indexes: a piece that every pass needs, and eight on demand."""


@pytest.fixture
def three_slots(tmp_path: Path) -> Iterator[Manual]:
    """A window that pins the dense piece and has three slots."""
    stored, _ = store_experts(tmp_path / "w", [2, *[1, 2] * 4], EXPERTS)
    with manual(stored, (2 + 3 * 2) * PAGE_BYTES) as pair:
        pair[1].finish(DENSE)
        yield pair


def hold(pair: Manual, index: int, hints: Sequence[int] = ()) -> None:
    """Holds a piece, whose read ends if it is not there."""
    window, reader = pair
    holder = Holder(window, index, hints)
    until(lambda: index in reader.under_way or holder._is_held.is_set())
    if index in reader.under_way:
        reader.finish(index)
    holder.wait_held()
    assert holder.leave() is None


def test_the_least_recently_used_makes_room(three_slots: Manual) -> None:
    _, reader = three_slots
    for index in (1, 2, 3, 1, 4):
        hold(three_slots, index)
    assert reader.started == [DENSE, 1, 2, 3, 4], "4 is in the slot of 2"
    for index in (1, 3, 4, 2):
        hold(three_slots, index)
    assert reader.started == [DENSE, 1, 2, 3, 4, 2]
    for index in (4, 3):
        hold(three_slots, index)
    assert len(reader.started) == 6, "1 made room"


def test_hits_are_counted(three_slots: Manual) -> None:
    window, _ = three_slots
    for index in (1, 2, 1, DENSE, 2, 3, 4, 1):
        hold(three_slots, index)
    stats = window.stats()
    assert (stats.demanded, stats.hits) == (7, 2)
    assert stats.streamed_bytes == (1 + 2 + 1 + 2 + 1) * PAGE_BYTES
    assert stats.read_bytes == stats.streamed_bytes + 2 * PAGE_BYTES
    assert stats.pool_bytes == 6 * PAGE_BYTES and stats.total_bytes == 8 * PAGE_BYTES


def test_hints_are_read_in_order_as_far_as_there_is_room(three_slots: Manual) -> None:
    window, reader = three_slots
    holder = Holder(window, 1, (5, 3, 2, 4))
    until(lambda: 3 in reader.under_way)
    assert reader.started == [DENSE, 1, 5, 3]
    reader.finish(1)
    holder.wait_held()
    reader.finish(5, 3)
    assert reader.under_way == [], "neither the held one nor what comes first makes room"
    assert holder.leave() is None
    hold(three_slots, 5, (3, 2))
    assert reader.started == [DENSE, 1, 5, 3, 2], "2 is in the slot of 1"
    reader.finish(2)
    hits = window.stats().hits
    for index in (3, 2):
        hold(three_slots, index)
    assert window.stats().hits == hits + 2


def test_what_is_hinted_and_there_stays(three_slots: Manual) -> None:
    _, reader = three_slots
    for index in (1, 2, 3):
        hold(three_slots, index)
    hold(three_slots, 3, (4, 1))
    assert reader.under_way == [4], "in the slot of 2, which was used after 1"
    reader.finish(4)
    hold(three_slots, 1)
    assert reader.started.count(1) == 1


@pytest.mark.parametrize("hints", [(0,), (99, -1), (1, 1, 1), (2, 2, 0, 1, 2)])
def test_hints_of_no_use_do_no_harm(three_slots: Manual, hints: tuple[int, ...]) -> None:
    _, reader = three_slots
    for _ in range(2):
        hold(three_slots, 1, hints)
        hold(three_slots, DENSE, hints)
        reader.finish_all()
    assert sorted(reader.started) == sorted({DENSE, 1, *(set(hints) & {2})})


def test_a_piece_of_every_pass_may_have_hints(three_slots: Manual) -> None:
    window, reader = three_slots
    with window.hold(DENSE, (7, 8)):
        assert reader.under_way == [7, 8]
        reader.finish_all()
    hold(three_slots, 8)
    assert window.stats().hits == 1


def test_wrong_hints_stop_for_what_is_needed(tmp_path: Path) -> None:
    stored, _ = store_experts(tmp_path / "w", [2, *[2] * 8], EXPERTS)
    with manual(stored, (2 + 2 * 2) * PAGE_BYTES) as (window, reader):
        reader.finish(DENSE)
        with window.hold(DENSE, (1, 2)):
            pass
        holder = Holder(window, 3, (1,))
        until(lambda: reader.cancelled() == [2])
        assert reader.under_way == [1, 2], "both slots are being read into"
        reader.finish(2)
        assert reader.under_way == [1, 3]
        reader.finish(3)
        holder.wait_held()
        assert holder.leave() is None
        reader.finish(1)
        hold((window, reader), 1)
        hold((window, reader), 2)
    assert reader.started == [DENSE, 1, 2, 3, 2]


def test_a_read_that_stops_and_is_wanted_again_begins_anew(tmp_path: Path) -> None:
    stored, contents = store_experts(tmp_path / "w", [2, *[2] * 8], EXPERTS)
    with manual(stored, (2 + 2 * 2) * PAGE_BYTES) as (window, reader):
        reader.finish(DENSE)
        with window.hold(DENSE, (1, 2)):
            pass
        threading.Timer(0.05, window.interrupt).start()
        with pytest.raises(Cancelled), window.hold(3):
            pass
        window.allow()
        assert reader.cancelled() == [1, 2]
        holder = Holder(window, 2)
        reader.finish(1)
        until(lambda: 2 in reader.under_way)
        reader.finish(2)
        until(lambda: reader.started[-1] == 2)
        reader.finish(2)
        holder.wait_held()
        assert holder.leave() is None
        with window.hold(2) as held:
            assert bytes_of(held, len(contents[2])) == contents[2]


def test_a_failed_read_surfaces_where_the_piece_is_held(three_slots: Manual) -> None:
    window, reader = three_slots
    with window.hold(DENSE, (1, 2)):
        reader.finish(1, error=ModelFileError("cannot read piece 1"))
        reader.finish(2)
    assert reader.under_way == [], "it is not tried again by itself"
    hold(three_slots, 2, (1,))
    with pytest.raises(ModelFileError, match="piece 1"), window.hold(1):
        pass
    hold(three_slots, 1)
    assert reader.started == [DENSE, 1, 2, 1]


def test_a_read_that_fails_while_it_is_waited_for(three_slots: Manual) -> None:
    window, reader = three_slots
    holder = Holder(window, 1, (2,))
    until(lambda: reader.under_way == [1, 2])
    reader.finish(2, error=ModelFileError("cannot read piece 2"))
    reader.finish(1, error=ModelFileError("cannot read piece 1"))
    assert "piece 1" in str(holder.leave())
    hold(three_slots, 3)
    assert window.use().held_bytes == 0
    hold(three_slots, 2)
    hold(three_slots, 1)


def test_a_failure_of_what_is_not_needed_is_forgotten(three_slots: Manual) -> None:
    window, reader = three_slots
    with window.hold(DENSE, (1,)):
        pass
    with window.hold(DENSE):
        reader.finish(1, error=ModelFileError("cannot read piece 1"))
    hold(three_slots, 1)


def test_an_interrupted_wait_ends_and_the_piece_comes_later(three_slots: Manual) -> None:
    window, reader = three_slots
    holder = Holder(window, 1, (2, 3))
    until(lambda: len(reader.under_way) == 3)
    window.interrupt()
    assert isinstance(holder.leave(), Cancelled)
    for index in (1, 2, DENSE):
        with pytest.raises(Cancelled), window.hold(index):
            pass
    window.allow()
    reader.finish_all()
    hold(three_slots, 1)
    assert reader.started == [DENSE, 1, 2, 3]
    assert window.stats().hits == 1


def test_closing_ends_a_wait_and_waits_for_reads(tmp_path: Path) -> None:
    stored, _ = store_experts(tmp_path / "w", [2, *[2] * 8], EXPERTS)
    with manual(stored, (2 + 3 * 2) * PAGE_BYTES) as (window, reader):
        reader.finish(DENSE)
        holder = Holder(window, 1, (2, 3))
        until(lambda: len(reader.under_way) == 3)
        closer = threading.Thread(target=window.close)
        closer.start()
        assert isinstance(holder.leave(), Cancelled)
        assert closer.is_alive() and reader.cancelled() == [1, 2, 3]
        reader.finish(1, 2)
        assert reader.under_way == [3], "nothing begins any more"
        reader.finish(3)
        closer.join(20)
        assert not closer.is_alive()


def test_closing_waits_for_a_held_piece(three_slots: Manual) -> None:
    window, reader = three_slots
    holder = Holder(window, 1)
    until(lambda: reader.under_way == [1])
    reader.finish(1)
    holder.wait_held()
    closer = threading.Thread(target=window.close)
    closer.start()
    until(lambda: window._is_closed)
    closer.join(0.05)
    assert closer.is_alive()
    assert holder.leave() is None
    closer.join(20)
    assert not closer.is_alive()


def test_where_everything_fits_what_is_needed_is_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_IN_FLIGHT_BYTES", 1)
    on_demand = {1, 2, 3, 5, 6, 7}
    stored, contents = store_experts(tmp_path / "w", [1] * 8, on_demand)
    with manual(stored, stored.arena_bytes) as (window, reader):
        assert window.try_resident() is None
        reader.finish(0)
        assert reader.started == [0, 4], "what every pass needs"
        holder = Holder(window, 6, (7, 2))
        until(lambda: window.stats().demanded == 1)
        reader.finish(4)
        reader.finish(6)
        holder.wait_held()
        assert holder.leave() is None
        reader.finish_all()
        assert reader.started == [0, 4, 6, 7, 2, 1, 3, 5]
        with window.hold(5):
            pass
        stats = window.stats()
        assert (stats.demanded, stats.hits, stats.streamed_bytes, stats.pool_bytes) == (2, 1, 0, 0)
        assert stats.pinned_pieces == 8
        held = window.try_resident()
        assert held is not None
        assert [bytes_of(piece, PAGE_BYTES) for piece in held] == contents
