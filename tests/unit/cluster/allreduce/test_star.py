"""The star over real TLS links against the conformance suite, and what happens when a link misbehaves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from tpi.cluster.allreduce.payload import PayloadBuffer, PayloadFormat
from tpi.cluster.allreduce.solo import SoloAllreduce
from tpi.cluster.allreduce.star import StarMaster, StarWorker
from tpi.cluster.mesh.frames import FrameTag, PayloadType, Phase
from tpi.errors import LinkError, ProtocolError
from tpi.runtime.protocols import Allreduce, SumStep
from tpi.testing.allreduce_suite import MAX_VALUES, AllreduceSuite, on_all_ranks
from tpi.testing.links import TlsPairs

STEP = SumStep(5, 2, (0, 1))


class TestStar(AllreduceSuite):
    @pytest.fixture(autouse=True)
    def _keep_pairs(self, tls_pairs: TlsPairs) -> None:
        self.pairs = tls_pairs

    @contextmanager
    def cluster(self, n_ranks: int, payload_format: PayloadFormat) -> Iterator[list[Allreduce]]:
        if n_ranks == 1:
            yield [SoloAllreduce()]
            return
        with self.pairs.star(n_ranks, payload_format, MAX_VALUES) as ends:
            yield ends


def test_a_shut_down_link_frees_both_sides(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master_link, worker_link):
        ends: list[Allreduce] = [
            StarMaster({1: master_link}, PayloadFormat.F16, 8),
            StarWorker(1, worker_link, PayloadFormat.F16, 8),
        ]
        threading.Timer(0.1, master_link.shut_down).start()
        values = np.ones((1, 8), dtype=np.float32)
        # Rank 1 does not contribute, so both wait: the master for rank 1, which waits for the total.
        steps = [STEP, SumStep(5, 2, (0,))]
        partials = [values, None]
        raised = on_all_ranks(lambda rank: ends[rank].sum(steps[rank], partials[rank], values.copy()), 2)
    assert isinstance(raised[0], LinkError) and "shut down on this side" in str(raised[0])
    assert isinstance(raised[1], LinkError)


def test_a_rank_at_another_step_is_named(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master_link, worker_link):
        buffer = PayloadBuffer(8)
        worker_link.send(FrameTag(5, 3, Phase.PARTIAL), PayloadType.F32, buffer, 32)
        values = np.ones((1, 8), dtype=np.float32)
        with pytest.raises(ProtocolError, match=r"sent pass 5 block 3 .*expected pass 5 block 2"):
            StarMaster({1: master_link}, PayloadFormat.F16, 8).sum(STEP, values, values)


@pytest.mark.parametrize(
    ("payload_type", "n_bytes"),
    [(PayloadType.F32, 16), (PayloadType.F16, 32), (PayloadType.BYTES, 32), (PayloadType.FAULT, 8)],
)
def test_a_partial_of_another_size_or_type_is_refused(
    tls_pairs: TlsPairs, payload_type: PayloadType, n_bytes: int
) -> None:
    with tls_pairs.data_links() as (master_link, worker_link):
        worker_link.send(FrameTag(5, 2, Phase.PARTIAL), payload_type, PayloadBuffer(8), n_bytes)
        values = np.ones((1, 8), dtype=np.float32)
        with pytest.raises(ProtocolError):
            StarMaster({1: master_link}, PayloadFormat.F16, 8).sum(STEP, values, values)


def test_counters_and_bytes(tls_pairs: TlsPairs) -> None:
    with tls_pairs.data_links() as (master_link, worker_link):
        master = StarMaster({1: master_link}, PayloadFormat.F16, 8)
        worker = StarWorker(1, worker_link, PayloadFormat.F16, 8)
        ends: list[Allreduce] = [master, worker]
        values = [np.ones((1, 8), dtype=np.float32) for _ in ends]
        assert on_all_ranks(lambda rank: ends[rank].sum(STEP, values[rank], values[rank]), 2) == [None, None]
        for counters in (master.counters, worker.counters):
            assert (counters.n_sums, counters.n_bytes_sent, counters.n_bytes_received) == (1, 16, 16)
        assert master_link.n_bytes_sent == worker_link.n_bytes_received == 32 + 16
