"""A device has one shard of a model, in the order that is wanted now; it becomes another with what it lacks alone."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from tests.unit.weights.helpers import FakeSource, Model, check_content, make_model
from tests.unit.weights.shards.test_orders import Kernels
from tpi.cluster.transfer.stock import Stock, find_stock
from tpi.errors import LinkError
from tpi.model.architectures import blocks_of
from tpi.runtime.rankmodel import RankModel
from tpi.weights.layout import PIECE_BYTES
from tpi.weights.shards.repacking import RepackingKernels
from tpi.weights.shards.shard import verify
from tpi.weights.shards.store import ShardStore


class Newer(Kernels):
    """Kernels of another version, with an order of their own."""

    name = "made up later"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), "Q8_0", n_layers=3, n_ff=1536)


class Device:
    """Where shards are kept. ``n_fetched``: bytes that came from elsewhere for the last one."""

    def __init__(self, model: Model, folder: Path) -> None:
        self.model, self.store = model, ShardStore(folder)
        self.n_fetched = 0

    def prepare(
        self, weights: tuple[float, ...], repacker: RepackingKernels | None, limit_bytes: int | None = None
    ) -> Stock:
        """The stock of rank 1; who has the slices goes away after ``limit_bytes``."""
        model, partition = self.model, self.model.partition(*weights)
        source = FakeSource(model, limit_bytes, LinkError("gone"))
        pieces = model.pieces(partition, 1, PIECE_BYTES)
        rank_model = RankModel(model.spec, blocks_of(model.spec), partition, 1, pieces)
        try:
            return find_stock(self.store, rank_model, repacker, lambda: nullcontext(source), lambda *_: None)
        finally:
            self.n_fetched = source.n_bytes

    @property
    def files(self) -> list[str]:
        return sorted(path.name for path in self.store.folder.iterdir())


@pytest.fixture
def device(model: Model, tmp_path: Path) -> Iterator[Device]:
    device = Device(model, tmp_path / "shards")
    with device.store:
        yield device


def test_there_is_one_file_whatever_is_wanted(device: Device) -> None:
    """Each is made from the one before, and nothing is fetched again."""
    n_fetched = []
    for repacker in (Kernels(8), None, Newer(4, "changed and torn"), Kernels(8)):
        stock = device.prepare((1, 1), repacker)
        n_fetched.append(device.n_fetched)
        assert stock.shard is not None and stock.is_stored_here and device.files == [stock.shard.path.name]
        assert stock.shard.header.repacking == (repacker.name if repacker is not None else "")
        verify(stock.shard)
        if repacker is None:
            check_content(device.model, stock.shard)
        again = device.prepare((1, 1), repacker)
        assert again.shard == stock.shard and device.n_fetched == 0
    assert n_fetched[0] > 0 and n_fetched[1:] == [0, 0, 0]


def test_changed_shares_move_only_what_is_new(device: Device, model: Model, tmp_path: Path) -> None:
    plain = Device(model, tmp_path / "plain")
    with plain.store:
        plain.prepare((1, 1), None)
        plain.prepare((2, 3), None)
    device.prepare((1, 1), Kernels(8))
    changed = device.prepare((2, 3), Kernels(8)).shard
    assert 0 < device.n_fetched == plain.n_fetched
    fresh = Device(model, tmp_path / "fresh")
    with fresh.store:
        straight = fresh.prepare((2, 3), Kernels(8)).shard
    assert changed is not None and straight is not None
    assert np.array_equal(np.fromfile(changed.path, np.uint8), np.fromfile(straight.path, np.uint8))


def test_a_broken_transfer_goes_on(device: Device) -> None:
    with pytest.raises(LinkError):
        device.prepare((1, 1), Kernels(8), 900_000)
    assert any(name.endswith(".part") for name in device.files)
    stock = device.prepare((1, 1), Kernels(8))
    assert stock.shard is not None
    n_bytes = sum(part.n_bytes for piece in stock.shard.pieces for part in piece.parts)
    assert 0 < device.n_fetched < n_bytes
    assert device.files == [stock.shard.path.name]
