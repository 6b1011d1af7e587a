"""A rank on its own device: with everything, with nothing, with too little memory; what it tells while it ends."""

from pathlib import Path

import numpy as np
import pytest

from tests.unit.runtime.rigs import Nobody, make_model, make_pass
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import HostDevice, RankHost, host_of
from tpi.cluster.epoch.rankplan import rank_model
from tpi.cluster.transfer.stock import make_shard, stock_of
from tpi.config import Resources
from tpi.errors import MemoryBudgetError
from tpi.gguf.reader import Gguf
from tpi.observe import resident_bytes
from tpi.runtime.rankmodel import RankModel
from tpi.weights.shards.store import ShardStore
from tpi.weights.slices import GgufSource


def make_host(folder: Path, gguf: Gguf, model: RankModel, resources: Resources) -> RankHost:
    plan = Plan(1, model.rank, model.spec, model.partition, 64, 8, 8, "f32", "F16")
    host = host_of(plan, rank_model(plan), HostDevice("me", resources, resident_bytes()))
    with GgufSource(gguf) as source:
        shard = make_shard(ShardStore(folder / "shards"), model, source, lambda *_: None)
    host.load(stock_of(shard, True))
    host.connect(Nobody(), lambda: (3, 4))
    return host


@pytest.mark.parametrize("rank", [0, 1])
def test_shares_of_everything_and_of_nothing(tmp_path: Path, rank: int) -> None:
    gguf, model = make_model(tmp_path / "model.gguf", weights=(1, 0), rank=rank)
    with make_host(tmp_path, gguf, model, Resources(n_threads=1)) as host:
        for number in range(3):
            logits = host.run(make_pass(model, 8 * number, 8))
            assert (logits is None) == (rank == 1)
            assert logits is None or (logits.shape == (8, 320) and np.isfinite(logits).all())
        status = host.status()
    assert status.n_passes == 3 and (status.sent_bytes, status.received_bytes) == (3, 4)
    assert (status.n_pieces, status.shard_bytes > 0) == ((5, True) if rank == 0 else (0, False))
    assert host.status().n_passes == 3, "the control link may ask while the rank ends"
    host.close()


def lending_host(folder: Path, gguf: Gguf, model: RankModel) -> RankHost:
    """A host of 2,048 cells, with memory for a part of the weights, and for more as long as cells are empty."""
    plan = Plan(1, model.rank, model.spec, model.partition, 2048, 512, 8, "f32", "F16")
    with GgufSource(gguf) as source:
        stock = stock_of(make_shard(ShardStore(folder / "shards"), model, source, lambda *_: None), True)
    process_bytes = 50_000_000
    with host_of(plan, model, HostDevice("me", Resources(n_threads=1), process_bytes)) as ample:
        limit = ample.memory.needs.fixed_bytes + stock.stored.arena_bytes // 2
    host = host_of(plan, model, HostDevice("me", Resources(memory_bytes=limit, n_threads=1), process_bytes))
    host.load(stock)
    host.connect(Nobody(), lambda: (0, 0))
    return host


@pytest.mark.parametrize("how", ["another chat", "forget", "the same chat"])
def test_cells_that_are_forgotten_are_lent_again(tmp_path: Path, how: str) -> None:
    """A chat that grows takes memory of its cells back; one that begins anew, after the same first token, lends it."""
    gguf, model = make_model(tmp_path / "model.gguf", n_ff=768, n_vocab=1024)
    with lending_host(tmp_path, gguf, model) as host:
        at_first = host.status().n_pinned
        answers = []
        for number in range(3):
            if number and how == "forget":
                host.adopt(model, None)
                assert host.status().n_pinned == at_first
            for first in range(0, 2048, 512):
                host.run(make_pass(model, first, 512, [511]))
            assert host.status().n_pinned < at_first
            if how == "the same chat":
                host.run(make_pass(model, 2047, 1))
                assert host.status().n_pinned < at_first
                continue
            if how == "forget":
                host.adopt(model, None)
                host.run(make_pass(model, 0, 1))
            logits = host.run(make_pass(model, 1, 8, [7]))
            assert logits is not None
            answers.append(logits.copy())
            assert host.status().n_pinned == at_first
        assert all(np.array_equal(answer, answers[0]) for answer in answers)


def test_too_little_memory_frees_what_was_taken(tmp_path: Path) -> None:
    gguf, model = make_model(tmp_path / "model.gguf")
    with pytest.raises(MemoryBudgetError, match="10MiB of memory is too little"):
        make_host(tmp_path, gguf, model, Resources(memory_bytes=10 << 20, n_threads=1))
