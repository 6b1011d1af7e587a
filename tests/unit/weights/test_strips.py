"""Several ranks are cut from one file at the same time: its bytes are read about once, whoever is slow, or ends."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.unit.weights.helpers import Model, check_content, make_model
from tpi.errors import Cancelled, ModelFileError
from tpi.model.architectures import blocks_of
from tpi.model.blocks import Axis, Block, Experts, Measure, Slot
from tpi.model.partition import Partition, divide
from tpi.model.spans import Span
from tpi.model.spec import TensorSpec
from tpi.model.steps import Steps
from tpi.weights import slices, strips
from tpi.weights.files import read_exactly
from tpi.weights.shards.assemble import write_shard
from tpi.weights.slices import GgufSource
from tpi.weights.strips import Strips, WholeRows

LIMIT_BYTES = 100_000
WAIT_S = 30.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    types = {"*": "Q8_0", "ffn_down": "Q4_0"}
    return make_model(tmp_path_factory.mktemp("model"), types, n_layers=3, n_embd=512, n_heads=8, n_ff=1536)


class Disk:
    """Counts what is read of the model; ``at`` is called with the number of bytes before every read."""

    def __init__(self) -> None:
        self.n_bytes = 0
        self.at: Callable[[int], None] = lambda n_bytes: None
        self._lock = threading.Lock()

    def read(self, descriptor: int, path: Path, offset: int, out: memoryview) -> None:
        with self._lock:
            self.n_bytes += len(out)
            n_bytes = self.n_bytes
        self.at(n_bytes)
        read_exactly(descriptor, path, offset, out)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(slices, "read_exactly", disk.read)
    return disk


def needed_bytes(model: Model, partition: Partition) -> int:
    """What must be read at least: all of every tensor that is cut between columns, and the rows that each rank has of
    others."""
    tensors, n_bytes = model.spec.tensors, 0
    cut = {slot.tensor.name for block in blocks_of(model.spec) for slot in block.slots if slot.axis is Axis.COLUMNS}
    for rank in range(partition.n_ranks):
        parts = [part for piece in model.pieces(partition, rank) for part in piece.parts]
        n_bytes += sum(part.n_bytes for part in parts if part.tensor not in cut)
    return n_bytes + sum(tensors[name].n_bytes for name in cut)


class Cutting:
    """Ranks in threads of their own that make their shards at the same time."""

    def __init__(self, model: Model, folder: Path, partition: Partition, shared: Strips | None) -> None:
        self.model, self.partition, self.shared = model, partition, shared
        self._folder = folder
        self.most_bytes = 0
        if shared is not None:
            shared.expect(blocks_of(model.spec), partition)

    def cut(self, rank: int, pause: Callable[[int], None]) -> None:
        """The shard of a rank; ``pause`` is called with the bytes done, after every piece."""
        reader = self.shared.reader(lambda: rank) if self.shared is not None else None

        def progress(done: int, total: int) -> None:
            if self.shared is not None:
                self.most_bytes = max(self.most_bytes, self.shared.n_bytes)
            pause(done)

        with GgufSource(self.model.gguf, reader) as source:
            header = self.model.header(self.partition, rank)
            check_content(self.model, write_shard(self._folder / f"{rank}", header, source, (), progress).shard)
        if reader is not None:
            reader.leave()

    @contextmanager
    def started(self, pauses: dict[int, Callable[[int], None]]) -> Iterator[dict[int, Future[None]]]:
        with ThreadPoolExecutor(len(pauses)) as pool:
            yield {rank: pool.submit(self.cut, rank, pause) for rank, pause in pauses.items()}

    def all(self, *delays_s: float) -> None:
        """All ranks, each of which takes so many seconds for a piece."""

        def pause(delay_s: float) -> Callable[[int], None]:
            return lambda done: time.sleep(delay_s)

        with self.started({rank: pause(delay_s) for rank, delay_s in enumerate(delays_s)}) as futures:
            for future in futures.values():
                future.result(WAIT_S)


@pytest.mark.parametrize("delays_s", [(0, 0, 0, 0), (0, 0.002, 0, 0.01), (0.01, 0, 0, 0)])
def test_the_file_is_read_once(model: Model, tmp_path: Path, disk: Disk, delays_s: tuple[float, ...]) -> None:
    partition = model.partition(1, 2, 1, 1)
    needed = needed_bytes(model, partition)
    Cutting(model, tmp_path, partition, None).all(*delays_s)
    alone = disk.n_bytes
    disk.n_bytes = 0
    cutting = Cutting(model, tmp_path, partition, Strips(LIMIT_BYTES))
    cutting.all(*delays_s)
    assert alone > 1.6 * needed, "every rank reads whole rows"
    assert disk.n_bytes < 1.03 * needed
    assert cutting.most_bytes <= LIMIT_BYTES
    assert cutting.shared is not None and cutting.shared.n_bytes == 0, "nothing is left"


def test_who_has_everything_is_not_waited_for(
    model: Model, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 2 does not begin; rank 3 says that it needs nothing."""
    monkeypatch.setattr(strips, "AWAY_S", 0.5)
    cutting = Cutting(model, tmp_path, model.partition(1, 1, 1, 1), Strips(LIMIT_BYTES))
    assert cutting.shared is not None
    cutting.shared.leave(3)
    began_s = time.monotonic()
    cutting.all(0, 0)
    assert 0.4 < time.monotonic() - began_s < 8
    assert disk.n_bytes < 1.03 * needed_bytes(model, cutting.partition)


def test_one_that_stands_still(model: Model, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on without it after a while, and it comes to its end, too."""
    monkeypatch.setattr(strips, "WAIT_LIMIT_S", 0.3)
    cutting, go_on = Cutting(model, tmp_path, model.partition(1, 1, 1), Strips(LIMIT_BYTES)), threading.Event()

    def stand(done: int) -> None:
        assert done < 200_000 or go_on.wait(WAIT_S)

    with cutting.started({0: lambda done: None, 1: lambda done: None, 2: stand}) as futures:
        futures[0].result(WAIT_S)
        futures[1].result(WAIT_S)
        assert not futures[2].done()
        go_on.set()
        futures[2].result(WAIT_S)
    assert cutting.most_bytes <= LIMIT_BYTES
    assert disk.n_bytes < 2.1 * needed_bytes(model, cutting.partition)


def test_a_late_one_is_waited_for(model: Model, tmp_path: Path, disk: Disk) -> None:
    cutting = Cutting(model, tmp_path, model.partition(1, 1), Strips(LIMIT_BYTES))
    with cutting.started({0: lambda done: None}) as futures:
        time.sleep(0.5)
        assert not futures[0].done()
        cutting.cut(1, lambda done: None)
        futures[0].result(WAIT_S)
    assert disk.n_bytes < 1.03 * needed_bytes(model, cutting.partition)


def test_a_disk_that_fails(model: Model, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever needs the rows hears of it; nobody waits for them."""
    monkeypatch.setattr(strips, "AWAY_S", 0.5)

    def fail(n_bytes: int) -> None:
        if n_bytes > 500_000:
            raise ModelFileError("broken")

    disk.at = fail
    cutting = Cutting(model, tmp_path, model.partition(1, 1, 1), Strips(LIMIT_BYTES))
    with cutting.started({rank: lambda done: None for rank in range(3)}) as futures:
        for future in futures.values():
            with pytest.raises(ModelFileError, match="broken"):
                future.result(WAIT_S)


def test_who_waits_can_be_stopped(model: Model, tmp_path: Path, disk: Disk) -> None:
    shared, n_checks = Strips(LIMIT_BYTES), 0

    def check() -> None:
        nonlocal n_checks
        n_checks += 1
        if n_checks == 2:
            raise Cancelled("enough")

    shared.expect(blocks_of(model.spec), model.partition(1, 1))
    header = model.header(model.partition(1, 1), 0)
    with GgufSource(model.gguf, shared.reader(lambda: 0, check)) as source, pytest.raises(Cancelled):
        write_shard(tmp_path / "s", header, source)
    assert 0 < shared.n_bytes <= LIMIT_BYTES
    shared.forget()
    assert shared.n_bytes == 0
    with GgufSource(model.gguf, shared.reader(lambda: 0, check)) as source:
        check_content(model, write_shard(tmp_path / "s", header, source).shard)


class Nothing:
    """A graph that nobody builds."""

    def build(self, g: Steps[object]) -> object:
        raise AssertionError


def read_of(shared: Strips, rank: int, source: WholeRows, rows: Span) -> None:
    shared.reader(lambda: rank).read(source, rows, (Span(0, 256),), np.zeros((rows.size, 256), np.uint8))


def test_only_those_who_hold_an_expert_take_its_rows() -> None:
    """Three experts of two units over six ranks: each has one unit of one expert."""
    down = Slot("down", TensorSpec("down", 0, 128, 3 * 10), Axis.COLUMNS)
    experts = Experts(3, 1, 128, 64, (down,), Nothing())
    block = Block(0, "ffn", 0, (Measure("columns of experts", 3 * 128, 3 * 64, 64),), (), Nothing(), experts=experts)
    read: list[Span] = []
    source = WholeRows("down", 30, 512, lambda row, out: read.append(Span(row, row + len(out) // 512)))
    shared = Strips(16 * 5 * 512)
    shared.expect([block], divide([block], [1] * 6))
    for rank in (0, 3):
        read_of(shared, rank, source, Span(0, 10))
        assert read == [Span(0, 5), Span(5, 10)] and shared.n_bytes == (2 * 5 * 512 if rank == 0 else 0)
    read_of(shared, 1, source, Span(12, 14))
    assert read[2:] == [Span(10, 15)], "all of the strip: rank 4 needs it"
    shared.leave(4)
    read_of(shared, 1, source, Span(16, 18))
    assert read[3:] == [Span(16, 18)], "nobody else does"
