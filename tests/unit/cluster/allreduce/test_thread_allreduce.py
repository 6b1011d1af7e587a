"""The in-process fake against the conformance suite, and what only the fake can do."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.errors import LinkError, ProtocolError
from tpi.runtime.protocols import Allreduce, SumStep
from tpi.testing.allreduce import ThreadAllreduce
from tpi.testing.allreduce_suite import MAX_VALUES, AllreduceSuite, on_all_ranks


class TestThreadAllreduce(AllreduceSuite):
    @contextmanager
    def cluster(self, n_ranks: int, payload_format: PayloadFormat) -> Iterator[list[Allreduce]]:
        yield ThreadAllreduce(n_ranks, payload_format, MAX_VALUES).ends()


def test_a_failed_thread_frees_the_others() -> None:
    shared = ThreadAllreduce(3, PayloadFormat.F32, 8)

    def work(rank: int) -> None:
        if rank == 1:
            try:
                raise MemoryError
            finally:
                shared.abort()
        ones = np.ones((1, 8), dtype=np.float32)
        shared.end(rank).sum(SumStep(0, 0, (0, 1, 2)), ones, ones)

    raised = on_all_ranks(work, 3)
    assert isinstance(raised[0], LinkError)
    assert isinstance(raised[1], MemoryError)
    assert isinstance(raised[2], LinkError)


def test_ranks_at_different_steps_are_told() -> None:
    shared = ThreadAllreduce(2, PayloadFormat.F32, 8)

    def work(rank: int) -> None:
        ones = np.ones((1, 8), dtype=np.float32)
        shared.end(rank).sum(SumStep(0, rank, (0, 1)), ones, ones)

    assert all(isinstance(error, ProtocolError) for error in on_all_ranks(work, 2))


def test_counters() -> None:
    shared = ThreadAllreduce(2, PayloadFormat.F16, 8)

    def work(rank: int) -> None:
        ones = np.ones((1, 8), dtype=np.float32)
        for number in range(3):
            shared.end(rank).sum(SumStep(0, number, (0, 1)), ones, ones)

    assert on_all_ranks(work, 2) == [None, None]
    counters = shared.end(1).counters
    assert (counters.n_sums, counters.n_bytes_sent) == (3, 3 * 16)
    assert counters.seconds > 0
