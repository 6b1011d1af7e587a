"""An allreduce between N threads of one process, with the arithmetic and payload formats of the real ones.

Owns one payload buffer per rank and one for the total. Every rank's thread calls ``sum`` on its own end; the thread
of rank 0 does the adding while the others wait at a barrier. Stands in for links in tests, and for a cluster in one
process; nothing is encrypted, nothing leaves the process.
"""

import threading

from tpi.cluster.allreduce.counters import SumCounters
from tpi.cluster.allreduce.payload import (
    PayloadBuffer,
    PayloadFormat,
    RankOrderSum,
    check_sum,
    copy_alone,
    encoded_bytes,
    fault_error,
)
from tpi.cluster.mesh.frames import PayloadType
from tpi.errors import LinkError, ProtocolError
from tpi.runtime.protocols import Allreduce, Float32Array, SumStep

DEFAULT_TIMEOUT_S = 60.0


class ThreadAllreduce:
    """What the ends share. Hand ``end(rank)`` to each rank's thread, and ``abort`` when a thread fails."""

    def __init__(
        self, n_ranks: int, payload_format: PayloadFormat, max_values: int, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> None:
        """``max_values`` bounds n_tokens x n_embd; a rank that waits longer than ``timeout_s`` gives up for all."""
        self._format = payload_format
        self._barrier = threading.Barrier(n_ranks, timeout=timeout_s)
        self._buffers = [PayloadBuffer(max_values) for _ in range(n_ranks)]
        self._types: list[PayloadType] = [PayloadType.F32] * n_ranks
        self._steps: list[SumStep | None] = [None] * n_ranks
        self._total = PayloadBuffer(max_values)
        self._total_type = PayloadType.F32
        self._faulty_rank: int | None = None
        self._ends = [ThreadAllreduceEnd(self, rank) for rank in range(n_ranks)]

    def end(self, rank: int) -> "ThreadAllreduceEnd":
        """The end that the thread of ``rank`` calls."""
        return self._ends[rank]

    def ends(self) -> list[Allreduce]:
        """All ends, by rank."""
        return list(self._ends)

    def abort(self) -> None:
        """Make every rank that waits, or comes later, raise LinkError. From any thread, idempotent."""
        self._barrier.abort()

    def exchange(self, step: SumStep, rank: int, partial: Float32Array | None, out: Float32Array) -> None:
        """One rank's part of a sum; see ``Allreduce.sum``."""
        self._steps[rank] = step
        if partial is not None:
            self._types[rank] = self._buffers[rank].encode(partial.reshape(-1), self._format)
        self._wait()  # all contributions are there
        same_step = all(other == step for other in self._steps)
        if rank == 0 and same_step:
            self._add(step, out.reshape(-1))
        self._wait()  # the total is there
        if not same_step:
            raise ProtocolError(f"the ranks are at different steps: {self._steps}")
        if self._faulty_rank is not None:
            raise fault_error(step, self._faulty_rank)
        self._total.decode(self._total_type, out.reshape(-1))

    def _add(self, step: SumStep, out: Float32Array) -> None:
        total = RankOrderSum(out)
        for rank in step.contributors:
            total.add(rank, self._buffers[rank], self._types[rank])
        self._faulty_rank = total.faulty_rank
        if total.faulty_rank is None:
            self._total_type = self._total.encode(out, self._format)

    def _wait(self) -> None:
        try:
            self._barrier.wait()
        except threading.BrokenBarrierError:
            raise LinkError("another rank of this process stopped in the middle of a pass") from None

    def n_bytes(self, rank: int, n_values: int) -> int:
        """Encoded length of what ``rank`` contributed last."""
        return encoded_bytes(self._types[rank], n_values)

    @property
    def n_ranks(self) -> int:
        """How many ranks take part."""
        return len(self._ends)


class ThreadAllreduceEnd:
    """One rank's end; satisfies ``tpi.runtime.protocols.Allreduce``."""

    def __init__(self, shared: ThreadAllreduce, rank: int) -> None:
        self._shared = shared
        self._rank = rank
        self.counters = SumCounters()

    def sum(self, step: SumStep, partial: Float32Array | None, out: Float32Array) -> None:
        """See ``Allreduce.sum``."""
        check_sum(step, self._rank, partial, out)
        with self.counters.timed():
            if self._shared.n_ranks == 1:
                assert partial is not None
                copy_alone(step, self._rank, partial, out)
                return
            self._shared.exchange(step, self._rank, partial, out)
            if partial is not None:
                self.counters.n_bytes_sent += self._shared.n_bytes(self._rank, out.size)
