"""Shards come to real workers over the link, once, and only what is missing; nothing comes where a copy is."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster.commands import Home, Running
from tests.cluster.ranks import DEMO, Cut
from tests.cluster.sessions import session
from tests.cluster.stories import CheckAnswers, CutFor
from tpi.cluster.control.messages import FetchRun
from tpi.cluster.transfer.slices import RunServer
from tpi.errors import LinkError
from tpi.gguf.reader import read_gguf
from tpi.gguf.types import TYPES_BY_ID
from tpi.model.spans import total_size
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard import open_shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.shard_source import ShardSource
from tpi.weights.slices import GgufSource


class Requests:
    """What workers have asked the masters of this process for; ``at`` is called with the number of each request."""

    def __init__(self) -> None:
        self.runs: list[FetchRun] = []
        self.at: Callable[[int], None] = lambda number: None

    def take(self, run: FetchRun) -> None:
        self.runs.append(run)
        self.at(len(self.runs))

    def take_bytes(self) -> int:
        """The bytes of all requests since the last call."""
        tensors = read_gguf(DEMO).tensors
        n_bytes = sum(
            run.rows.size * TYPES_BY_ID[tensors[run.tensor].type.id].row_bytes(total_size(run.columns))
            for run in self.runs
        )
        self.runs.clear()
        return n_bytes


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    requests = Requests()
    answer = RunServer.request

    def request(server: RunServer, run: FetchRun) -> None:
        requests.take(run)
        answer(server, run)

    monkeypatch.setattr(RunServer, "request", request)
    return requests


def shard_bytes(model: Cut, rank: int) -> int:
    """Bytes of weights, without the gaps between them."""
    return sum(part.n_bytes for piece in model.models[rank].pieces for part in piece.parts)


def test_once_and_then_only_what_is_new(
    tmp_path: Path, away: Home, requests: Requests, cut_for: CutFor, check_answers: CheckAnswers
) -> None:
    half, most = cut_for(DEMO, (1, 1)), cut_for(DEMO, (1, 2))
    with session(tmp_path / "master", [away], (1, 1)) as (cluster, _):
        check_answers(cluster)
    assert requests.take_bytes() == shard_bytes(half, 1)

    with session(tmp_path / "master", [away], (1, 1)) as (cluster, _):
        check_answers(cluster)
    assert requests.runs == []

    header = ShardHeader(most.spec, most.partition, 1)
    with GgufSource(most.gguf) as whole, ShardSource(open_shard(half.stored[1].paths[0])) as older:
        missing = write_shard(tmp_path / "expected.tpishard", header, whole, [older]).fetched_bytes
    with session(tmp_path / "master", [away], (1, 2)) as (cluster, _):
        check_answers(cluster)
    assert requests.take_bytes() == missing
    assert 0 < missing < shard_bytes(most, 1) // 2
    kept = list((away.folder / "shards").rglob("*.tpishard"))
    assert len(kept) == 1 and kept[0].read_bytes() == (tmp_path / "expected.tpishard").read_bytes()


def test_a_repaired_model_is_fetched_anew(
    tmp_path: Path, away: Home, requests: Requests, cut_for: CutFor, check_answers: CheckAnswers
) -> None:
    """The slices of the damaged one have sums that fit."""
    model, tensor = tmp_path / "model.gguf", read_gguf(DEMO).tensors["blk.1.ffn_up.weight"]
    place = tensor.offset + tensor.n_bytes * 3 // 4  # of rank 1
    sound = DEMO.read_bytes()
    model.write_bytes(sound[:place] + bytes(byte ^ 1 for byte in sound[place : place + 64]) + sound[place + 64 :])
    with session(tmp_path / "master", [away], (1, 1), model=model):
        pass
    n_bytes = shard_bytes(cut_for(DEMO, (1, 1)), 1)
    assert requests.take_bytes() == n_bytes
    model.write_bytes(sound)
    with session(tmp_path / "master", [away], (1, 1), model=model) as (cluster, _):
        check_answers(cluster)
    assert requests.take_bytes() == n_bytes


@pytest.mark.parametrize("killed_at", [1, 7, 23])
def test_a_broken_transfer_goes_on(
    tmp_path: Path,
    away: Home,
    requests: Requests,
    cut_for: CutFor,
    check_answers: CheckAnswers,
    killed_at: int,
) -> None:
    model = cut_for(DEMO, (1, 1))

    def kill(workers: list[Running]) -> None:
        pid = workers[0].process.pid
        requests.at = lambda number: os.kill(pid, signal.SIGKILL) if number == killed_at else None

    with (
        pytest.raises(LinkError, match=r"w1 \(rank 1\) is gone"),
        session(tmp_path / "master", [away], (1, 1), started=kill),
    ):
        pass
    requests.at = lambda number: None
    assert len(requests.runs) == killed_at
    finished = requests.runs[:-1]  # the worker asks for the next run when it has the one before
    requests.take_bytes()
    with session(tmp_path / "master", [away], (1, 1)) as (cluster, _):
        check_answers(cluster)
    # Runs of the piece that was not complete come again, those of pieces before it do not.
    wanted = [part for piece in model.models[1].pieces for part in piece.parts]
    n_per_piece = [len(piece.parts) for piece in model.models[1].pieces]
    n_kept = max(sum(n_per_piece[:n]) for n in range(len(n_per_piece)) if sum(n_per_piece[:n]) <= len(finished))
    assert [run.tensor for run in requests.runs] == [part.tensor for part in wanted[n_kept:]]


def test_a_worker_with_the_model_cuts_its_own(
    tmp_path: Path, away: Home, requests: Requests, check_answers: CheckAnswers
) -> None:
    with session(tmp_path / "master", [away], (2, 1), ["--model", str(DEMO)]) as (cluster, workers):
        check_answers(cluster)
        assert "cuts its slices" in workers[0].err()
    assert requests.runs == []


def test_a_worker_with_a_shard_needs_nothing(
    tmp_path: Path, away: Home, requests: Requests, check_answers: CheckAnswers
) -> None:
    ended = away.run("shard", "demo", "--ranks", "2", "--shares", "1,3", "--out", str(tmp_path / "cut"))
    assert ended.code == 0, ended.err
    shard = ended.out.splitlines()[1]
    with session(tmp_path / "master", [away], None, ["--shard", shard]) as (cluster, workers):
        check_answers(cluster)
        shares = [rank.share for rank in cluster.status().ranks]
        assert 0.6 < shares[1] < 0.85
        assert "slices" not in workers[0].err()
    assert requests.runs == []
    assert not list((away.folder / "shards").rglob("*.tpishard"))
