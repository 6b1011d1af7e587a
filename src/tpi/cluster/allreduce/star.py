"""The star: workers send their partial results to the master, which adds them in rank order and sends back the total.

Owns one payload buffer per rank; the links are the caller's. Runs in the thread that runs passes. A round costs
2τ + N·S/B (τ one-way latency, S encoded payload, B port rate, N ranks).

Nothing here stops a round in which a peer is lost: the link's timeout does, or whoever shuts the link down.
"""

from collections.abc import Mapping

from tpi.cluster.allreduce.counters import SumCounters
from tpi.cluster.allreduce.payload import (
    FAULT_BYTES,
    PayloadBuffer,
    PayloadFormat,
    RankOrderSum,
    check_sum,
    encoded_bytes,
    fault_error,
    is_finite,
)
from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.frames import FrameTag, PayloadType, Phase
from tpi.runtime.protocols import Float32Array, SumStep


class StarMaster:
    """Rank 0 of a star; satisfies ``tpi.runtime.protocols.Allreduce``."""

    def __init__(self, links: Mapping[int, DataLink], payload_format: PayloadFormat, max_values: int) -> None:
        """``links`` by rank, one to every worker, ranks 1 to N-1; ``max_values`` bounds n_tokens x n_embd."""
        assert sorted(links) == list(range(1, len(links) + 1)), "a star needs a link to every worker"
        self._links = tuple(links[rank] for rank in sorted(links))
        self._format = payload_format
        self._buffer = PayloadBuffer(max_values)
        self.counters = SumCounters()

    def sum(self, step: SumStep, partial: Float32Array | None, out: Float32Array) -> None:
        """See ``Allreduce.sum``."""
        check_sum(step, 0, partial, out)
        with self.counters.timed():
            flat = out.reshape(-1)
            faulty_rank = self._gather(step, partial, flat)
            if faulty_rank is None:
                self._share(step, flat)
            else:
                self._buffer.encode_fault(faulty_rank)
                self._broadcast(step, PayloadType.FAULT, FAULT_BYTES)
                raise fault_error(step, faulty_rank)

    def _gather(self, step: SumStep, partial: Float32Array | None, out: Float32Array) -> int | None:
        """Leave the sum of all contributions in flat ``out``; returns who spoilt it, after hearing everybody."""
        total = RankOrderSum(out)
        if partial is not None:
            total.add(0, self._buffer, self._buffer.encode(partial.reshape(-1), self._format))
        tag = FrameTag(step.pass_id, step.block, Phase.PARTIAL)
        for rank in step.contributors:
            if rank > 0:
                payload_type = self._receive(self._links[rank - 1], tag, out.size)
                total.add(rank, self._buffer, payload_type)
        return total.faulty_rank

    def _receive(self, link: DataLink, tag: FrameTag, n_values: int) -> PayloadType:
        header = link.expect_header(tag)
        n_bytes = encoded_bytes(header.payload_type, n_values)
        link.receive_payload(header, self._buffer, n_bytes)
        self.counters.n_bytes_received += n_bytes
        return header.payload_type

    def _share(self, step: SumStep, out: Float32Array) -> None:
        """Send flat ``out`` to everybody, and keep what they will read."""
        payload_type = self._buffer.encode(out, self._format)
        self._broadcast(step, payload_type, encoded_bytes(payload_type, out.size))
        self._buffer.decode(payload_type, out)

    def _broadcast(self, step: SumStep, payload_type: PayloadType, n_bytes: int) -> None:
        tag = FrameTag(step.pass_id, step.block, Phase.TOTAL)
        for link in self._links:
            link.send(tag, payload_type, self._buffer, n_bytes)
            self.counters.n_bytes_sent += n_bytes


class StarWorker:
    """A rank beside 0 of a star; satisfies ``tpi.runtime.protocols.Allreduce``."""

    def __init__(self, rank: int, link: DataLink, payload_format: PayloadFormat, max_values: int) -> None:
        """``link`` leads to the master; ``max_values`` bounds n_tokens x n_embd."""
        assert rank > 0, "rank 0 is the star's master"
        self._rank = rank
        self._link = link
        self._format = payload_format
        self._buffer = PayloadBuffer(max_values)
        self.counters = SumCounters()

    def sum(self, step: SumStep, partial: Float32Array | None, out: Float32Array) -> None:
        """See ``Allreduce.sum``."""
        check_sum(step, self._rank, partial, out)
        with self.counters.timed():
            if partial is not None:
                self._contribute(step, partial.reshape(-1))
            self._receive_total(step, out.reshape(-1))

    def _contribute(self, step: SumStep, partial: Float32Array) -> None:
        payload_type = self._buffer.encode(partial, self._format)
        n_bytes = encoded_bytes(payload_type, partial.size)
        self._link.send(FrameTag(step.pass_id, step.block, Phase.PARTIAL), payload_type, self._buffer, n_bytes)
        self.counters.n_bytes_sent += n_bytes

    def _receive_total(self, step: SumStep, out: Float32Array) -> None:
        header = self._link.expect_header(FrameTag(step.pass_id, step.block, Phase.TOTAL))
        if header.payload_type is PayloadType.FAULT:
            self._link.receive_payload(header, self._buffer, FAULT_BYTES)
            raise fault_error(step, self._buffer.decode_fault())
        n_bytes = encoded_bytes(header.payload_type, out.size)
        self._link.receive_payload(header, self._buffer, n_bytes)
        self.counters.n_bytes_received += n_bytes
        self._buffer.decode(header.payload_type, out)
        if not is_finite(out):
            raise fault_error(step, 0)
