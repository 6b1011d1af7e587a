"""A rank gets its weights in the order of the kernels: copies for other kernels, and disks without room for one."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.models import write_random_model
from tests.unit.runtime.rigs import Nobody, make_pass
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import HostDevice, RankHost
from tpi.cluster.epoch.preparing import Provision, prepare_host
from tpi.cluster.epoch.rankplan import rank_model
from tpi.cluster.reports import Event, Remark
from tpi.cluster.transfer.stock import Stock, find_stock
from tpi.config import Resources
from tpi.errors import KernelError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide
from tpi.observe import resident_bytes
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rankmodel import RankModel
from tpi.weights.identity import model_digest
from tpi.weights.shards.inventory import list_entries, try_remove
from tpi.weights.shards.repacking import RepackingKernels
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.shard_writer import ShardWriter
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import GgufSource
from tpi.weights.stored import stored_from_gguf


@pytest.fixture(scope="module", autouse=True)
def repacking() -> str:
    """What these kernels call their order."""
    try:
        with Repacker() as repacker:
            return repacker.name
    except KernelError as error:
        pytest.skip(str(error))


class Alone:
    """A device that is alone with a model of a type that kernels rearrange."""

    def __init__(self, folder: Path) -> None:
        self.gguf = read_gguf(write_random_model(folder / "model.gguf", types="Q4_0"))
        spec = read_spec(self.gguf, model_digest(self.gguf))
        self.plan = Plan(1, 0, spec, divide(blocks_of(spec), (1,)), 64, 8, 8, "f32", "F16")
        self.model = rank_model(self.plan)
        self.events: list[Event] = []
        self._cache = folder / "cache"

    def prepare(
        self,
        store: ShardStore,
        repack: bool = True,
        copied: Callable[[], None] = lambda: None,
        before: RankHost | None = None,
    ) -> RankHost:
        """``copied`` is called at the start of a copy, and after each of its pieces."""
        whole = stored_from_gguf(self.gguf, self.model.pieces)

        def stock(model: RankModel, repacker: RepackingKernels | None) -> Stock:
            if repacker is None:
                return Stock(whole)
            return find_stock(store, model, repacker, lambda: GgufSource(self.gguf), lambda *_: copied())

        provision = Provision(store, self._cache, stock, self.events.append, whole)
        device = HostDevice("me", Resources(n_threads=1, repack=repack), resident_bytes())
        return prepare_host(self.plan, device, provision, before)

    def logits(self, host: RankHost) -> Float32Array:
        host.connect(Nobody(), lambda: (0, 0))
        found = host.run(make_pass(self.model, 0, 8))
        assert found is not None
        return found.copy()

    @property
    def remarks(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Remark)]


@pytest.fixture
def alone(tmp_path: Path) -> Alone:
    return Alone(tmp_path)


def store_copy(alone: Alone, store: ShardStore, repacking: str) -> Path:
    """A finished copy for the kernels of that name; nobody reads what is in it."""
    plan, model = alone.plan, alone.model
    path = store.path_for(plan.spec.digest, 0, model.pieces, repacking)
    with ShardWriter(path, ShardHeader(plan.spec, plan.partition, 0, repacking=repacking)) as writer:
        for piece in model.pieces:
            writer.write(memoryview(bytes(piece.n_bytes)))
        return writer.finish().path


def test_a_new_copy_replaces_that_for_other_kernels(alone: Alone, tmp_path: Path, repacking: str) -> None:
    store = ShardStore(tmp_path / "shards")
    old = store_copy(alone, store, "cpu-repack-old")
    copied: list[bool] = []
    with alone.prepare(store, copied=lambda: copied.append(old.exists())):
        (entry,) = list_entries(store.folder)
        assert entry.shard is not None and entry.shard.header.repacking == repacking
        assert len(copied) > 1 and all(copied), "the old copy stays until the new one is finished"
    old = store_copy(alone, store, "cpu-repack-old")
    with alone.prepare(store):
        assert old.exists(), "nothing was made"
    assert alone.remarks == []


def test_a_copy_that_a_rank_reads_is_in_use(alone: Alone, tmp_path: Path) -> None:
    with ShardStore(tmp_path / "shards") as store, alone.prepare(store) as host:
        (entry,) = list_entries(store.folder)
        assert entry.is_used and not try_remove(entry)
        assert np.isfinite(alone.logits(host)).all()
    assert not entry.is_used and try_remove(entry)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("only root may mount a small disk, and not everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Leaves no byte free."""
    with suppress(OSError), (folder / "filler").open("ab", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))


def test_a_disk_that_is_full_before_the_copy_is_finished(alone: Alone, small_disk: Path, tmp_path: Path) -> None:
    with alone.prepare(ShardStore(tmp_path / "elsewhere"), repack=False) as host:
        expected = alone.logits(host)
    store = ShardStore(small_disk / "shards")
    with alone.prepare(store, copied=lambda: fill(small_disk)) as host:
        (small_disk / "filler").unlink()
        assert list_entries(store.folder) == [], "what was begun is gone"
        assert np.array_equal(alone.logits(host), expected)
        (remark,) = alone.remarks
        assert "no room" in remark and str(store.folder) in remark and "computing goes on without" in remark
        assert "\n" not in remark
        assert alone.prepare(store, before=host) is host, "the next epoch has the same weights"
    assert len(alone.remarks) == 1


def test_a_disk_that_has_filled_up_between_two_epochs(alone: Alone, small_disk: Path) -> None:
    with ShardStore(small_disk / "shards") as store, alone.prepare(store) as host:
        alone.logits(host)
        (entry,) = list_entries(store.folder)
        entry.path.unlink()
        alone.plan = msgspec.structs.replace(alone.plan, max_tokens=16)
        with alone.prepare(store, copied=lambda: fill(small_disk), before=host) as after:
            assert after is not host and np.isfinite(alone.logits(after)).all()
    assert len(alone.remarks) == 1
