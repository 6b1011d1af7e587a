"""A formed cluster: runs passes over all ranks, tells its status, ends in order.

One thread runs passes; any thread may ask for the status. Owns the master's rank and the links to the workers.
"""

import time
from collections.abc import Sequence
from typing import Self

import msgspec

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.allreduce.solo import SoloAllreduce
from tpi.cluster.allreduce.star import StarMaster
from tpi.cluster.control.messages import Plan
from tpi.cluster.epoch.host import RankHost
from tpi.cluster.membership.member import Member
from tpi.cluster.mesh.datapath import MasterDatapath
from tpi.cluster.reports import ClusterStatus, RankStatus
from tpi.errors import LinkError
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Allreduce, Float32Array

_STATUS_TIMEOUT_S = 2.0
_REASON_TIMEOUT_S = 1.0


class Cluster:
    """All ranks of one epoch, connected. A context manager; ``close`` is idempotent and ends the workers."""

    def __init__(self, plan: Plan, host: RankHost, members: Sequence[Member]) -> None:
        self._plan, self._host = plan, host
        self._members = sorted(members, key=lambda member: member.rank)
        self._links = {member.rank: member.data for member in self._members if member.data is not None}
        self._datapath = MasterDatapath(self._links, plan.spec, plan.partition, plan.max_tokens, plan.n_cells)
        allreduce: Allreduce = SoloAllreduce()
        if self._links:
            allreduce = StarMaster(self._links, PayloadFormat(plan.payload), plan.max_tokens * plan.spec.n_embd)
        host.connect(allreduce, self._count_bytes)
        self.spec = plan.spec
        self.n_cells = plan.n_cells
        self.max_tokens = plan.max_tokens
        self._reason = ""
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is not None:
            self._reason = reason_of(error)
        self.close()

    def close(self) -> None:
        """Tells the workers to end, with the reason if there was an error, and frees everything."""
        if not self._closed:
            self._closed = True
            with self._host:
                for member in self._members:
                    member.dismiss(self._reason)

    def run(self, work: Pass) -> Float32Array:
        """One pass over all ranks; the logits of the sampled rows, f32 [n_sampled, n_vocab], a new array. Blocks.

        Raises:
            LinkError: a worker is gone or cannot go on; no further pass can run.
            NumericError, KernelError, ModelFileError: see ``runtime.rank.Rank.run``.
        """
        try:
            self._datapath.broadcast(work)
            return self._datapath.gather(work, self._host.run(work))
        except LinkError as error:
            raise self._explain(error) from None

    def status(self) -> ClusterStatus:
        """Every rank's figures; a worker that does not answer within two seconds is left out. Any thread."""
        asked = []
        for member in self._members:
            try:
                asked.append((member, member.request_status()))
            except LinkError:
                continue
        deadline_s = time.monotonic() + _STATUS_TIMEOUT_S
        ranks = [self._host.status()]
        for member, number in asked:
            status = member.wait_status(number, max(deadline_s - time.monotonic(), 0.0))
            if status is not None:
                ranks.append(status)
        return ClusterStatus(
            model=self.spec.name,
            model_digest=self.spec.digest,
            epoch=self._plan.epoch,
            context=self.n_cells,
            payload=self._plan.payload,
            allreduce="star" if self._links else "none",
            ranks=_with_shares(ranks),
        )

    def _explain(self, error: LinkError) -> LinkError:
        """The data link broke; the control link knows better why, perhaps in a moment."""
        deadline_s = time.monotonic() + _REASON_TIMEOUT_S
        while time.monotonic() < deadline_s:
            for member in self._members:
                if member.end is not None:
                    return member.end
            time.sleep(0.01)
        return error

    def _count_bytes(self) -> tuple[int, int]:
        links = self._links.values()
        return sum(link.n_bytes_sent for link in links), sum(link.n_bytes_received for link in links)


def reason_of(error: BaseException) -> str:
    """What workers are told when ``error`` ends the session."""
    return f"the master ended the session: {error}" if str(error) else "the master was stopped"


def _with_shares(ranks: Sequence[RankStatus]) -> tuple[RankStatus, ...]:
    total = sum(rank.shard_bytes for rank in ranks) or 1
    return tuple(msgspec.structs.replace(rank, share=rank.shard_bytes / total) for rank in ranks)
