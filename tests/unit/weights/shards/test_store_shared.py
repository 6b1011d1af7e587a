"""Sessions of one user share a folder of shards: each removes only what no other process writes or uses."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.unit.weights.helpers import Model, check_content, cut_shard, make_model
from tpi.weights.shards.shard import Shard
from tpi.weights.shards.shard_format import layout_of
from tpi.weights.shards.shard_writer import ShardWriter
from tpi.weights.shards.store import ShardStore

WAIT_S = 20.0
OTHERS, OWN = (1.0, 1.0), (2.0, 1.0)
"""Shares of the other process's shard and of this one's."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), n_ff=1536)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ShardStore]:
    with ShardStore(tmp_path / "shards") as store:
        yield store


class Other:
    """Another process; ``told`` waits for its word, ``go_on`` lets it go on."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, *arguments))
        self.process.start()
        theirs.close()

    def told(self) -> str:
        assert self._pipe.poll(WAIT_S), "nothing was told"
        return str(self._pipe.recv())

    def go_on(self) -> None:
        self._pipe.send("go on")

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(WAIT_S)


@contextmanager
def other_process(work: Callable[..., None], *arguments: Any) -> Iterator[Other]:
    other = Other(work, *arguments)
    try:
        yield other
    finally:
        other.process.kill()
        other.process.join(WAIT_S)


def shard_path(model: Model, folder: Path, weights: tuple[float, ...]) -> Path:
    return ShardStore(folder).path_for(model.spec.digest, 0, model.pieces(model.partition(*weights), 0))


def make_shard(model: Model, store: ShardStore, weights: tuple[float, ...]) -> Shard:
    return cut_shard(model, shard_path(model, store.folder, weights), weights, 0)


def write_with_a_pause(pipe: Connection, model: Model, folder: Path) -> None:
    header = model.header(model.partition(*OTHERS), 0)
    with ShardWriter(shard_path(model, folder, OTHERS), header) as writer:
        for piece in writer.layout.pieces:
            if piece.index == len(writer.layout.pieces) // 2:
                pipe.send("half")
                pipe.recv()
            writer.write(memoryview(model.piece(piece)))
        writer.finish()
    pipe.send("done")
    pipe.recv()


def use(pipe: Connection, model: Model, folder: Path) -> None:
    with ShardStore(folder) as store:
        found = store.try_find(model.spec.digest, model.pieces(model.partition(*OTHERS), 0))
        pipe.send("in use" if found is not None else "not found")
        pipe.recv()
    pipe.send("closed")
    pipe.recv()


def names(store: ShardStore) -> set[str]:
    return {path.name for path in store.folder.iterdir()}


def test_what_another_process_writes_stays(model: Model, store: ShardStore) -> None:
    path = shard_path(model, store.folder, OTHERS)
    with other_process(write_with_a_pause, model, store.folder) as other:
        assert other.told() == "half"
        own = make_shard(model, store, OWN)
        store.remove_older(own)
        assert names(store) == {own.path.name, f"{path.name}.part", f"{path.name}.journal"}
        other.go_on()
        assert other.told() == "done"
        assert names(store) == {own.path.name, path.name}
    [found] = [shard for shard in store.shards() if shard.path == path]
    check_content(model, found)


def test_what_a_killed_process_wrote_is_removed(model: Model, store: ShardStore) -> None:
    with other_process(write_with_a_pause, model, store.folder) as other:
        assert other.told() == "half"
        other.kill()
        own = make_shard(model, store, OWN)
        assert len(names(store)) == 3
        assert store.remove_older(own) > 0
    assert names(store) == {own.path.name}


@pytest.mark.parametrize("end", ["close", "kill"])
def test_what_another_process_uses_stays_as_long_as_it_does(model: Model, store: ShardStore, end: str) -> None:
    used = make_shard(model, store, OTHERS)
    note = used.path.with_name(used.path.name + ".disk")
    note.write_bytes(b"{}")
    with other_process(use, model, store.folder) as other:
        assert other.told() == "in use"
        own = make_shard(model, store, OWN)
        assert store.remove_older(own) == 0
        assert names(store) == {own.path.name, used.path.name, note.name}
        if end == "close":
            other.go_on()
            assert other.told() == "closed"
        else:
            other.kill()
        assert store.remove_older(own) >= used.n_bytes
    assert names(store) == {own.path.name}


def test_two_that_use_one_shard(model: Model, store: ShardStore) -> None:
    """Who goes on to another must leave it to the other."""
    used = make_shard(model, store, OTHERS)
    with other_process(use, model, store.folder) as other:
        assert other.told() == "in use"
        assert store.try_find(model.spec.digest, used.pieces) == used
        own = make_shard(model, store, OWN)
        store.remove_older(own)
        assert names(store) == {own.path.name, used.path.name}
    store.remove_older(own)
    assert names(store) == {own.path.name}


def write_again_and_again(pipe: Connection, model: Model, folder: Path) -> None:
    header = model.header(model.partition(*OTHERS), 0)
    pieces = [memoryview(model.piece(piece)) for piece in layout_of(header).pieces]
    pipe.send("begins")
    for _ in range(100):
        with ShardWriter(shard_path(model, folder, OTHERS), header) as writer:
            for piece in pieces[writer.n_finished :]:
                writer.write(piece)
            writer.finish()
    pipe.send("done")


def test_writing_and_removing_at_once(model: Model, store: ShardStore) -> None:
    """Neither sees what the other has half done."""
    own = make_shard(model, store, OWN)
    n_removed = 0
    with other_process(write_again_and_again, model, store.folder) as other:
        assert other.told() == "begins"
        while other.process.is_alive():
            n_removed += store.remove_older(own) > 0
        assert other.told() == "done" and n_removed > 3
    assert names(store) <= {own.path.name, shard_path(model, store.folder, OTHERS).name}
