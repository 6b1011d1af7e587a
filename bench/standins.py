"""Devices that join a cluster and compute nothing: their parts of all sums and logits are zeros.

    python -m bench.standins KEY-FILE NAME [NAME …]

With them one real rank of a cluster, the master included, runs with all its links and sums on a machine that could
never hold the others. One thread per device; ends when the master does.
"""

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
from tpi.cluster.datapath import WorkerDatapath
from tpi.cluster.links.control import ControlLink
from tpi.cluster.links.datalink import DataLink
from tpi.cluster.links.messages import AnyMessage, Goodbye, Offer, OpenData, Plan, Prepared
from tpi.cluster.pairing.connect import find_or_join, open_control, open_data
from tpi.cluster.pairing.identity import IdentityStore
from tpi.cluster.pairing.joinkey import JoinKey
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
        self._data: DataLink | None = None

    def run(self) -> None:
        """Joins, takes part, returns when the master ends.

        Raises:
            TpiError: it could not take part.
        """
        identity = find_or_join(self._key, self._name, self._store)
        opened = open_control(self._key.addresses, identity)
        with ControlLink(opened.socket, "the master", None, self._take, self._end) as control:
            control.send(Offer(_MEMORY_BYTES, []))
            plan = self._wait_for(Plan)
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
        else:
            self._inbox.put(message)

    def _end(self, error: LinkError) -> None:
        self._inbox.put(error)
        if self._data is not None:
            self._data.shut_down()


def _no_logits(plan: Plan, head: Block, work: Pass) -> Float32Array | None:
    n_rows = plan.partition.shares[head.index][plan.rank].rows.size
    return np.zeros((len(work.sampled), n_rows), np.float32) if n_rows and len(work.sampled) else None


def main(arguments: Sequence[str]) -> None:
    """Runs all devices until the master ends."""
    key = JoinKey.decode(Path(arguments[0]).read_text().strip())
    with tempfile.TemporaryDirectory() as folder:
        devices = [StandIn(key, name, Path(folder)) for name in arguments[1:]]
        threads = [threading.Thread(target=device.run, name=f"standin-{i}") for i, device in enumerate(devices)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    main(sys.argv[1:])
