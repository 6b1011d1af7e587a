"""From one epoch to the next in the same processes: other shares, payloads and algorithms, the same answers; nothing
grows, and what stays in memory is not read again."""

import gc
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cluster.commands import Home
from tests.cluster.ranks import CONTEXT, DEMO, Story, forced
from tests.cluster.sessions import WAIT_S, session
from tests.cluster.stories import CheckAnswers
from tpi.cluster.cluster import Cluster
from tpi.cluster.control.messages import EndEpoch, Message, Plan
from tpi.cluster.epoch.host import HostDevice, RankHost
from tpi.cluster.epoch.preparing import Provision, prepare_host
from tpi.cluster.master import Master
from tpi.cluster.membership.member import Member
from tpi.cluster.worker import run_worker
from tpi.config import Folders, MasterSettings, WorkerSettings
from tpi.native.allocator import give_back_freed

CHANGES: list[dict[str, Any]] = [
    {"wire": "f32"},
    {"shares": (1, 1, 1), "wire": "f16"},
    {"allreduce": "star"},
    {"shares": (0, 3, 1), "allreduce": "ring"},
    {"shares": None, "layout": "0:0 1:1,2 2-3:2 head:*"},
    {"shares": (3, 2, 1), "layout": None, "allreduce": "two-shot"},
]
N_CHANGES, N_FIRST = 50, 10
GROWTH_BYTES = 3 << 20
"""What memory may differ by after ``N_FIRST`` and after ``N_CHANGES``: less than a tenth of a megabyte each."""


@pytest.fixture
def others(tmp_path: Path, cache: Path) -> Iterator[list[Home]]:
    """Two more devices."""
    with Home.several(2, tmp_path, cache) as homes:
        yield homes


def test_answers_stay_the_same_whatever_changes_between_them(
    tmp_path: Path, others: list[Home], story: Story, check_answers: CheckAnswers
) -> None:
    with session(tmp_path / "master", others, (3, 2, 1)) as (cluster, workers):
        pids = [worker.process.pid for worker in workers]
        first = forced(cluster, DEMO, story)
        partitions = [rank.share for rank in cluster.status().ranks]
        for number, change in enumerate(CHANGES, start=2):
            cluster.change(**change)
            check_answers(cluster)
            status = cluster.status()
            assert status.epoch == cluster.epoch == number and status.choice is not None
            if wanted := change.get("allreduce"):
                assert (status.choice.few.algorithm, status.choice.many.algorithm) == (wanted, wanted)
            if "wire" in change:
                assert {status.choice.few.payload, status.choice.many.payload} == {change["wire"]}
            partitions.append(status.ranks[0].share)
            assert [worker.process.pid for worker in workers if worker.process.poll() is None] == pids
        assert len({round(share, 3) for share in partitions}) > 4
        cluster.change(allreduce="one-shot")
        again = forced(cluster, DEMO, story)
        cluster.change(allreduce="star")
        cluster.change(allreduce="one-shot")
        assert np.array_equal(forced(cluster, DEMO, story), again), "the same epoch but for its number: equal bits"
        assert again.shape == first.shape
        assert all("joined" not in worker.err().split("ready", 1)[1] for worker in workers)


def test_a_peer_that_hears_earlier_of_the_end_is_no_loss(
    tmp_path: Path, others: list[Home], check_answers: CheckAnswers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its links close before the other knows why."""
    send = Member.send

    def send_late(member: Member, message: Message) -> None:
        if isinstance(message, EndEpoch) and member.rank == 2:
            threading.Timer(0.4, send, (member, message)).start()
        else:
            send(member, message)

    monkeypatch.setattr(Member, "send", send_late)
    with session(tmp_path / "master", others, (1, 1, 1)) as (cluster, _):
        for name in ("star", "one-shot"):
            cluster.change(allreduce=name)
        check_answers(cluster)


@dataclass(frozen=True)
class Footprint:
    """What a process has."""

    anonymous_bytes: int
    n_descriptors: int
    n_threads: int


def footprint_of(pid: int) -> Footprint:
    text = Path(f"/proc/{pid}/status").read_text()
    found = {name: int(number) for name, number in re.findall(r"^(RssAnon|Threads):\s+(\d+)", text, re.MULTILINE)}
    return Footprint(found["RssAnon"] << 10, len(os.listdir(f"/proc/{pid}/fd")), found["Threads"])


def test_fifty_changes_leave_no_trace(tmp_path: Path, others: list[Home]) -> None:
    """In the master, which is this process, and in the workers."""
    found: list[list[Footprint]] = []
    with session(tmp_path / "master", others, (3, 2, 1)) as (cluster, workers):
        pids = [os.getpid(), *(worker.process.pid for worker in workers)]
        for number in range(1, N_CHANGES + 1):
            change = {"shares": ((3, 2, 1), (2, 2, 1))[number // 5 % 2]} if number % 5 == 0 else {}
            cluster.change(allreduce=("one-shot", "star")[number % 2], **change)
            if number in (N_FIRST, N_CHANGES):
                gc.collect()
                give_back_freed()
                time.sleep(0.3)  # threads that end take their leave
                found.append([footprint_of(pid) for pid in pids])
        status = cluster.status()
    early, late = found
    for before, after in zip(early, late, strict=True):
        print(f"{before} -> {after}")
        assert (after.n_descriptors, after.n_threads) == (before.n_descriptors, before.n_threads)
        assert after.anonymous_bytes - before.anonymous_bytes < GROWTH_BYTES
    assert status.epoch == N_CHANGES + 1


class Hosts:
    """The hosts that a worker makes, in a thread of this process."""

    def __init__(self) -> None:
        self.latest: RankHost | None = None

    def prepare(self, plan: Plan, device: HostDevice, provision: Provision, before: RankHost | None) -> RankHost:
        self.latest = prepare_host(plan, device, provision, before)
        return self.latest


@contextmanager
def with_a_worker_here(folder: Path, cache: Path, layout: str) -> Iterator[tuple[Cluster, Hosts]]:
    """A cluster of two ranks, both in this process; all weights fit."""
    hosts = Hosts()
    settings = MasterSettings(
        DEMO,
        Folders(folder / "state", folder / "shards", cache),
        n_workers=1,
        wait_s=WAIT_S,
        layout=layout,
        context=CONTEXT,
        bind="127.0.0.1",
        port=0,
    )
    with ExitStack() as stack:
        master = stack.enter_context(Master(settings))
        folders = Folders(folder / "worker", folder / "worker-shards", cache)
        joining = WorkerSettings(master.join_key, folders, name="w1")
        thread = threading.Thread(target=run_worker, args=(joining, lambda event: None, hosts.prepare))
        thread.start()
        stack.callback(thread.join, WAIT_S)
        yield stack.enter_context(master.form(lambda event: None)), hosts
    assert not thread.is_alive()


def read_bytes(host: RankHost | None) -> int:
    """What the host's window has read, once nothing is missing."""
    assert host is not None and host._window is not None
    deadline_s = time.monotonic() + WAIT_S
    while host._window.try_resident() is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.002)
    return host._window.stats().read_bytes


def test_what_stays_in_memory_is_not_read_again(tmp_path: Path, cache: Path, check_answers: CheckAnswers) -> None:
    wide, narrow = "0-1:0 2-3:1 head:1", "0-2:0 3:1 head:1"
    with with_a_worker_here(tmp_path, cache, wide) as (cluster, hosts):
        check_answers(cluster)
        mine, theirs = read_bytes(cluster._host), read_bytes(hosts.latest)
        layer_bytes = mine // 2
        for name in ("star", "ring", "one-shot"):
            cluster.change(allreduce=name, wire="f32" if name == "ring" else "f16")
            read = read_bytes(cluster._host), read_bytes(hosts.latest)
            assert read in ((mine, theirs), (0, 0)), "the same window, or another that takes everything over"
        for layout, grows in ((narrow, True), (wide, False), (narrow, True)):
            cluster.change(layout=layout)
            check_answers(cluster)
            expected = (layer_bytes, 0) if grows else (0, layer_bytes)
            assert (read_bytes(cluster._host), read_bytes(hosts.latest)) == expected
