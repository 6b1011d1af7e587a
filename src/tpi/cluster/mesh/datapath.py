"""What travels on data links beside partial sums: passes and embeddings out, logits back. Master's and worker's end.

Owns its frame buffers; the links are the caller's. Runs in the thread that runs passes.
"""

from collections.abc import Mapping

import numpy as np

from tpi.cluster.mesh.datalink import DataLink
from tpi.cluster.mesh.frames import NO_BLOCK, FrameBuffer, FrameTag, PayloadType, Phase
from tpi.cluster.mesh.passframes import pack_pass, pass_capacity, unpack_pass
from tpi.errors import NumericError, ProtocolError
from tpi.model.partition import Partition, Span
from tpi.model.spec import ModelSpec
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array

_F32_BYTES = 4


def master_frame_bytes(spec: ModelSpec, max_tokens: int, n_cells: int) -> int:
    """Memory of the frames that rank 0 sends passes and embeddings from, while there are others."""
    return pass_capacity(max_tokens, n_cells) + max_tokens * spec.n_embd * _F32_BYTES


def worker_frame_bytes(spec: ModelSpec, max_tokens: int, n_cells: int) -> int:
    """Memory of the frames that a worker receives passes and embeddings into, and of the mask that it unpacks."""
    return master_frame_bytes(spec, max_tokens, n_cells) + max_tokens * n_cells


class MasterDatapath:
    """Rank 0's end."""

    def __init__(
        self, links: Mapping[int, DataLink], spec: ModelSpec, partition: Partition, max_tokens: int, n_cells: int
    ) -> None:
        self._links = links
        self._spans = [share.rows for share in partition.shares[-1]]
        self._n_vocab = spec.n_vocab
        self._pass = FrameBuffer(pass_capacity(max_tokens, n_cells) if links else 0)
        self._embeddings = FrameBuffer(max_tokens * spec.n_embd * _F32_BYTES if links else 0)
        self._logits = FrameBuffer(0)

    def broadcast(self, work: Pass) -> None:
        """Sends the pass to every worker.

        Raises:
            LinkError: a worker is lost.
        """
        if not self._links:
            return
        n_bytes = pack_pass(work, self._pass)
        n_embedding_bytes = work.embeddings.nbytes
        self._embeddings.payload[:n_embedding_bytes] = work.embeddings.reshape(-1).view(np.uint8).data
        for link in self._links.values():
            link.send(FrameTag(work.pass_id, NO_BLOCK, Phase.PASS), PayloadType.BYTES, self._pass, n_bytes)
            tag = FrameTag(work.pass_id, NO_BLOCK, Phase.EMBEDDINGS)
            link.send(tag, PayloadType.F32, self._embeddings, n_embedding_bytes)

    def gather(self, work: Pass, own: Float32Array | None) -> Float32Array:
        """The logits of all ranks, f32 [n_sampled, n_vocab], a new array.

        Raises:
            LinkError, ProtocolError: a worker is lost or sent something else.
            NumericError: a worker's logits are not finite.
        """
        n_sampled = len(work.sampled)
        logits = np.empty((n_sampled, self._n_vocab), dtype=np.float32)
        if not n_sampled:
            return logits
        if own is not None:
            _place(logits, self._spans[0], own)
        for rank, link in self._links.items():
            span = self._spans[rank]
            if span.size:
                _place(logits, span, self._receive(link, rank, work, span))
        return logits

    def _receive(self, link: DataLink, rank: int, work: Pass, span: Span) -> Float32Array:
        n_bytes = len(work.sampled) * span.size * _F32_BYTES
        if self._logits.capacity_bytes < n_bytes:
            self._logits = FrameBuffer(n_bytes)
        header = link.expect_header(FrameTag(work.pass_id, NO_BLOCK, Phase.LOGITS))
        link.receive_payload(header, self._logits, n_bytes)
        part = np.frombuffer(self._logits.payload, np.float32, n_bytes // _F32_BYTES).reshape(-1, span.size)
        if not np.isfinite(part).all():
            raise NumericError(f"rank {rank} ({link.peer}) sent logits that are not finite: is its shard damaged?")
        return part


def _place(logits: Float32Array, span: Span, part: Float32Array) -> None:
    logits[:, span.start : span.stop] = part


class WorkerDatapath:
    """A worker's end."""

    def __init__(self, link: DataLink, spec: ModelSpec, max_tokens: int, n_cells: int, max_sampled: int) -> None:
        self._link, self._n_cells, self._max_sampled = link, n_cells, max_sampled
        self._pass = FrameBuffer(pass_capacity(max_tokens, n_cells))
        self._embeddings = FrameBuffer(max_tokens * spec.n_embd * _F32_BYTES)
        self._rows = np.frombuffer(self._embeddings.payload, np.float32).reshape(max_tokens, spec.n_embd)
        self._logits = FrameBuffer(0)

    def receive(self) -> Pass:
        """Waits for the next pass; it stays valid until the next call.

        Raises:
            LinkError, ProtocolError: the link ended, or something else came.
        """
        self._link.wait_readable(None)
        header = self._link.receive_header()
        if header.tag.phase is not Phase.PASS:
            raise ProtocolError(f"{self._link.peer} sent {header.tag}, expected a new pass")
        self._link.receive_payload(header, self._pass)
        payload = self._pass.payload[: header.n_payload_bytes]
        work = unpack_pass(header.tag.pass_id, payload, self._rows, self._n_cells, self._max_sampled)
        header = self._link.expect_header(FrameTag(work.pass_id, NO_BLOCK, Phase.EMBEDDINGS))
        self._link.receive_payload(header, self._embeddings, work.embeddings.nbytes)
        return work

    def send_logits(self, work: Pass, logits: Float32Array | None) -> None:
        """Sends this rank's logits, if it has any.

        Raises:
            LinkError: the master is lost.
        """
        if logits is None:
            return
        if self._logits.capacity_bytes < logits.nbytes:
            self._logits = FrameBuffer(logits.nbytes)
        self._logits.payload[: logits.nbytes] = logits.reshape(-1).view(np.uint8).data
        tag = FrameTag(work.pass_id, NO_BLOCK, Phase.LOGITS)
        self._link.send(tag, PayloadType.F32, self._logits, logits.nbytes)
