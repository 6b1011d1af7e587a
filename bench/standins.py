"""Devices that join a cluster and compute nothing: their parts of all sums and logits are zeros.

    python -m bench.standins [--state DIR] KEY-FILE NAME [NAME …]

With them one real rank of a cluster, the master included, runs with all its links and sums on a machine that could
never hold the others. One thread per device; ends when the master does. Says ``waiting`` when it is about to read the
key. With ``--state`` the devices keep their certificates there and join once.
"""

import argparse
import queue
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.allreduce.star import StarWorker
from tpi.cluster.control.link import ControlLink
from tpi.cluster.control.messages import (
    AnyMessage,
    Goodbye,
    Offer,
    OpenData,
    Plan,
    Prepared,
    StatusReply,
    StatusRequest,
)
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.datapath import WorkerDatapath
from tpi.cluster.pairing.connect import find_or_join, open_control, open_data
from tpi.cluster.pairing.identity import IdentityStore
from tpi.cluster.pairing.joinkey import JoinKey
from tpi.cluster.reports import RankStatus
from tpi.errors import LinkError, TpiError
from tpi.model.architectures import blocks_of
from tpi.model.spec import Block, BlockKind
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array, SumStep
from tpi.runtime.rank import first_after_attention

_MEMORY_BYTES = 1 << 40
_Message = TypeVar("_Message")


class StandIn:
    """One device; ``run`` is its whole life."""

    def __init__(self, key: JoinKey, name: str, folder: Path) -> None:
        self._key, self._name = key, name
        self._store = IdentityStore(folder / name)
        self._inbox: queue.SimpleQueue[AnyMessage | LinkError] = queue.SimpleQueue()
        self._control: ControlLink | None = None
        self._data: DataLink | None = None
        self._rank = 0

    def run(self) -> None:
        """Joins, takes part, returns when the master ends.

        Raises:
            TpiError: it could not take part.
        """
        identity = find_or_join(self._key, self._name, self._store)
        opened = open_control(self._key.addresses, identity)
        with ControlLink(opened.socket, "the master", None, self._take, self._end) as control:
            self._control = control
            control.send(Offer(_MEMORY_BYTES, []))
            plan = self._wait_for(Plan)
            self._rank = plan.rank
            control.send(Prepared())
            order = self._wait_for(OpenData)
            data = open_data(opened.address, identity, order.epoch, order.token)
            self._data = DataLink(data.socket, "the master", epoch=order.epoch, timeout_s=None)
            with self._data:
                self._work(plan, self._data)

    def _work(self, plan: Plan, link: DataLink) -> None:
        width, blocks = plan.spec.n_embd, blocks_of(plan.spec)
        datapath = WorkerDatapath(link, plan.spec, plan.max_tokens, plan.n_cells, plan.max_sampled)
        allreduce = StarWorker(plan.rank, link, PayloadFormat(plan.payload), plan.max_tokens * width)
        nothing, total = (np.zeros((plan.max_tokens, width), np.float32) for _ in range(2))
        while True:
            try:
                work = datapath.receive()
                for block in blocks:
                    n = work.n_tokens if block.index < first_after_attention(blocks) else len(work.sampled)
                    if n and block.kind is not BlockKind.HEAD:
                        contributors = plan.partition.contributors(block.index)
                        partial = nothing[:n] if plan.rank in contributors else None
                        allreduce.sum(SumStep(work.pass_id, block.index, contributors), partial, total[:n])
                datapath.send_logits(work, _no_logits(plan, blocks[-1], work))
            except LinkError:
                return

    def _wait_for(self, kind: type[_Message]) -> _Message:
        message = self._inbox.get()
        if isinstance(message, kind):
            return message
        raise message if isinstance(message, TpiError) else LinkError(f"{self._name} got {message}")

    # The control link's thread.

    def _take(self, message: AnyMessage) -> None:
        if isinstance(message, Goodbye):
            self._end(LinkError(message.reason or "the master has ended"))
        elif isinstance(message, StatusRequest) and self._control is not None:
            # The master waits for it around every answer.
            self._control.send(StatusReply(message.number, _no_figures(self._rank, self._name)))
        else:
            self._inbox.put(message)

    def _end(self, error: LinkError) -> None:
        self._inbox.put(error)
        if self._data is not None:
            self._data.shut_down()


def _no_logits(plan: Plan, head: Block, work: Pass) -> Float32Array | None:
    n_rows = plan.partition.shares[head.index][plan.rank].rows.size
    return np.zeros((len(work.sampled), n_rows), np.float32) if n_rows and len(work.sampled) else None


def _no_figures(rank: int, name: str) -> RankStatus:
    return RankStatus(
        rank=rank,
        name=name,
        memory_limit_bytes=None,
        planned_bytes=0,
        peak_rss_bytes=0,
        rss_bytes=0,
        shard_bytes=0,
        window_bytes=0,
        pinned_bytes=0,
        n_pinned=0,
        n_pieces=0,
        disk_mode="",
        streamed_bytes=0,
        hold_s=0.0,
        compute_s=0.0,
        allreduce_s=0.0,
        sent_bytes=0,
        received_bytes=0,
        n_passes=0,
        share=0.0,
    )


def main(arguments: Sequence[str]) -> None:
    """Runs all devices until the master ends."""
    parser = argparse.ArgumentParser(prog="bench.standins")
    parser.add_argument("--state", type=Path)
    parser.add_argument("key_file", type=Path)
    parser.add_argument("names", nargs="+")
    given = parser.parse_args(arguments)
    print("waiting", flush=True)
    key = JoinKey.decode(given.key_file.read_text().strip())
    with tempfile.TemporaryDirectory() as folder:
        devices = [StandIn(key, name, given.state or Path(folder)) for name in given.names]
        threads = [threading.Thread(target=device.run, name=f"standin-{i}") for i, device in enumerate(devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
