"""What travels over the mesh beside sums: passes from the master to all, logits back to it. Master's and worker's end.

Owns its frame buffers; the mesh is the caller's. Runs in the thread that runs passes.

A LOGITS frame holds, for all of every sampled row, F32 or F16 [n_sampled, rows]; otherwise BYTES, for each sampled row:
the log-sum-exp of the slice (f64), ids (i32) and values (f32) of its best min(n_best, rows) tokens, and f32 for each
token that was asked for (not a number: of another slice). Where the residual stream
is wanted as well, another LOGITS frame, of one rank alone, holds it, F32 [n_sampled, n_embd]. All numbers are
little-endian.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tpi.cluster.mesh.datalink import Exchange, Incoming
from tpi.cluster.mesh.frames import NO_BLOCK, FrameBuffer, FrameTag, PayloadType, Phase
from tpi.cluster.mesh.mesh import Mesh
from tpi.cluster.mesh.passframes import (
    PassLimits,
    pack_order,
    pack_pass,
    pack_rest,
    pass_capacity,
    unpack_order,
    unpack_pass,
)
from tpi.errors import NumericError, ProtocolError
from tpi.model.spans import Span
from tpi.runtime.logits import Extract, Row, Wanted, extract, join
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Float32Array

_F32_BYTES = 4
_ANY_PASS_KEY_BYTES = 12
"""Magic to epoch: whatever its number."""


def frame_bytes(limits: PassLimits, is_first: bool, is_master: bool) -> int:
    """Memory of the frames of passes on a rank, and on a worker of the mask that it unpacks; ``is_first``: the residual
    stream begins there, or, on the master, somewhere else."""
    n_embd = limits.n_embd if is_first else 0
    mask = 0 if is_master else limits.max_tokens * limits.n_cells
    return pass_capacity(limits.max_tokens, limits.n_cells, n_embd) + mask


class MasterDatapath:
    """Rank 0's end."""

    def __init__(self, mesh: Mesh, limits: PassLimits, first_members: Sequence[int], spans: Sequence[Span]) -> None:
        """``first_members`` get the embeddings; ``spans`` are the vocabulary rows of every rank."""
        self._mesh, self._limits, self._spans = mesh, limits, spans
        self._first_members = frozenset(first_members) - {mesh.rank}
        capacity = pass_capacity(limits.max_tokens, limits.n_cells, limits.n_embd if self._first_members else 0)
        self._pass = FrameBuffer(capacity)
        self._logits: dict[int, Incoming] = {}

    def broadcast(self, work: Pass) -> None:
        """Sends the pass to every worker, to those that need them with the embeddings.

        Raises:
            LinkError: a worker is lost.
        """
        key = FrameTag(work.pass_id, NO_BLOCK, Phase.PASS).key(self._mesh.epoch)
        groups = (True, self._first_members), (False, frozenset(self._mesh.peers) - self._first_members)
        for with_embeddings, members in groups:
            if members:
                n_bytes = pack_pass(work, self._pass, with_embeddings)
                self._send(key, n_bytes, sorted(members))

    def send_order(self, pass_id: int, content: bytes, rank: int) -> None:
        """Sends a worker what it is to do with a prefix, after the pass of this number.

        Raises:
            LinkError: it is lost.
            ProtocolError: the order is too long.
        """
        self._send(
            FrameTag(pass_id, NO_BLOCK, Phase.PASS).key(self._mesh.epoch), pack_order(content, self._pass), [rank]
        )

    def gather(self, work: Pass, own: Float32Array | None) -> tuple[Row, ...]:
        """What is wanted of all sampled rows; ``own`` is rank 0's part of them, f32 [n_sampled, rows].

        Raises:
            LinkError, ProtocolError: a worker is lost or sent something else.
            NumericError: a worker's logits are not finite.
        """
        if not len(work.sampled):
            return ()
        self._receive(work, work.wanted)
        if work.wanted.is_all:
            return self._dense(work, own)
        rows = []
        for index in range(len(work.sampled)):
            parts = []
            for rank, span in enumerate(self._spans):
                if span.size and rank == self._mesh.rank:
                    assert own is not None
                    parts.append(extract(own[index], span.start, work.wanted))
                elif span.size:
                    parts.append(self._extract_of(rank, index, work.wanted, span))
            rows.append(join(parts, work.wanted))
        return tuple(rows)

    def gather_rest(self, work: Pass, own: Float32Array | None) -> tuple[Row, ...]:
        """All logits, in 16 bits, of the pass that ``gather`` was called for last; raises as it does."""
        key = FrameTag(work.pass_id, NO_BLOCK, Phase.PASS).key(self._mesh.epoch)
        self._send(key, pack_rest(self._pass), [rank for rank in self._mesh.peers if self._spans[rank].size])
        self._receive(work, Wanted(is_exact=False))
        return self._dense(work, own)

    def gather_stream(self, work: Pass, own: Float32Array | None, width: int) -> Float32Array:
        """The residual stream of all sampled rows, f32 [n_sampled, width], after ``gather``; ``own`` is rank 0's, if it
        has rows of the head. Raises as ``gather`` does."""
        if own is not None:
            return own
        rank, n = first_speaker(self._spans), len(work.sampled)
        incoming, exchange = Incoming(FrameBuffer(n * width * _F32_BYTES)), Exchange()
        key = FrameTag(work.pass_id, NO_BLOCK, Phase.LOGITS).key(self._mesh.epoch)
        self._mesh.expect(self._mesh.sources({rank: incoming}), key, exchange)
        self._mesh.wait(exchange)
        buffer = incoming.buffer
        if buffer.payload_type is not PayloadType.F32 or buffer.n_payload_bytes != n * width * _F32_BYTES:
            raise ProtocolError(f"{self._mesh.name_of(rank)} sent {buffer.n_payload_bytes} bytes as {n} rows")
        return self._check(rank, np.frombuffer(buffer.payload, "<f4", n * width).reshape(n, width))

    def _send(self, key: bytes, n_bytes: int, ranks: Sequence[int]) -> None:
        exchange = Exchange()
        self._pass.seal(key, PayloadType.BYTES, n_bytes)
        self._mesh.send(self._mesh.targets(ranks), self._pass, exchange)
        self._mesh.wait(exchange)

    def _receive(self, work: Pass, wanted: Wanted) -> None:
        """Waits for all workers' logits."""
        key, exchange = FrameTag(work.pass_id, NO_BLOCK, Phase.LOGITS).key(self._mesh.epoch), Exchange()
        frames = {}
        for rank in self._mesh.peers:
            span = self._spans[rank]
            if span.size:
                n_bytes = len(work.sampled) * max(_row_bytes(wanted, span), 2 * span.size)
                incoming = self._logits.get(rank)
                if incoming is None or incoming.buffer.capacity_bytes < n_bytes:
                    incoming = self._logits[rank] = Incoming(FrameBuffer(n_bytes))
                frames[rank] = incoming
        sources = self._mesh.sources(frames)
        self._mesh.expect(sources, key, exchange)
        self._mesh.wait(exchange)

    def _dense(self, work: Pass, own: Float32Array | None) -> tuple[Row, ...]:
        logits = np.empty((len(work.sampled), self._limits.n_vocab), dtype=np.float32)
        for rank, span in enumerate(self._spans):
            if span.size:
                is_own = rank == self._mesh.rank
                logits[:, span.start : span.stop] = own if is_own else self._dense_of(rank, len(work.sampled), span)
        return tuple(Row(row[: work.wanted.n_tokens or None]) for row in logits)

    def _dense_of(self, rank: int, n_rows: int, span: Span) -> Float32Array:
        buffer, kind = self._frame_of(rank), {PayloadType.F32: "<f4", PayloadType.F16: "<f2"}
        form = kind.get(buffer.payload_type)
        if form is None or buffer.n_payload_bytes != n_rows * span.size * np.dtype(form).itemsize:
            raise self._wrong(rank)
        part = np.frombuffer(buffer.payload, form, n_rows * span.size).reshape(n_rows, span.size)
        return self._check(rank, part.astype(np.float32, copy=False))

    def _extract_of(self, rank: int, index: int, wanted: Wanted, span: Span) -> Extract:
        buffer, row_bytes, n_tokens = self._frame_of(rank), _row_bytes(wanted, span), _n_tokens(wanted, span)
        n = min(wanted.n_best, n_tokens)
        start = index * row_bytes
        if buffer.payload_type is not PayloadType.BYTES or buffer.n_payload_bytes < start + row_bytes:
            raise self._wrong(rank)
        (log_sum_exp,) = struct.unpack_from("<d", buffer.payload, start)
        ids = np.frombuffer(buffer.payload, "<i4", n, start + 8).astype(np.int64)
        values = np.frombuffer(buffer.payload, "<f4", n, start + 8 + 4 * n)
        asked = np.frombuffer(buffer.payload, "<f4", len(wanted.ids), start + 8 + 8 * n)
        if not (log_sum_exp < np.inf and (ids >= span.start).all() and (ids < span.stop).all()):
            raise self._wrong(rank)
        self._check(rank, values)
        is_here = np.array([span.start <= token < span.start + n_tokens for token in wanted.ids], np.bool_)
        if (np.isnan(asked) != ~is_here).any() or not np.isfinite(asked[is_here]).all():
            raise ProtocolError(
                f"{self._mesh.name_of(rank)} sent logits of tokens that are not its own, or not all that were asked for"
            )
        return Extract(ids, values, asked, log_sum_exp, n == n_tokens)

    def _frame_of(self, rank: int) -> FrameBuffer:
        return self._logits[rank].buffer

    def _check(self, rank: int, values: Float32Array) -> Float32Array:
        if not np.isfinite(values).all():
            raise NumericError(
                f"rank {rank} ({self._mesh.name_of(rank)}) sent logits that are not finite: is its shard damaged?"
            )
        return values

    def _wrong(self, rank: int) -> ProtocolError:
        buffer = self._frame_of(rank)
        return ProtocolError(
            f"{self._mesh.name_of(rank)} sent {buffer.n_payload_bytes} bytes of {buffer.payload_type.name} as logits, "
            "which are none"
        )


class WorkerDatapath:
    """A worker's end."""

    def __init__(
        self,
        mesh: Mesh,
        limits: PassLimits,
        is_first: bool,
        span: Span,
        on_order: Callable[[bytes], None] = lambda order: None,
    ) -> None:
        """``is_first``: the residual stream begins here; ``span`` are this rank's vocabulary rows; ``on_order`` does,
        between two passes, what is to be done with a prefix."""
        self._on_order = on_order
        self._mesh, self._limits, self._span = mesh, limits, span
        capacity = pass_capacity(limits.max_tokens, limits.n_cells, limits.n_embd if is_first else 0)
        self._pass = FrameBuffer(capacity)
        self._source = mesh.sources({0: Incoming(self._pass, _ANY_PASS_KEY_BYTES)})
        self._target = mesh.targets([0])
        self._out = FrameBuffer(0)

    def receive(self) -> Pass | None:
        """Waits for the next pass, which stays valid until the next call; None: all logits of the last one are wanted.
        What is to be done before is done.

        Raises:
            LinkError, ProtocolError: the link ended, or something else came.
        """
        while (order := unpack_order(payload := self._receive())) is not None:
            self._on_order(order)
        return unpack_pass(self._pass.tag.pass_id, payload, self._limits)

    def _receive(self) -> memoryview:
        exchange = Exchange()
        self._mesh.expect(self._source, FrameTag(0, NO_BLOCK, Phase.PASS).key(self._mesh.epoch), exchange)
        self._mesh.wait(exchange)
        return self._pass.payload[: self._pass.n_payload_bytes]

    def send_logits(self, work: Pass, logits: Float32Array | None) -> None:
        """Sends what is wanted of this rank's logits, if it has any.

        Raises:
            LinkError: the master is lost.
        """
        if logits is None:
            return
        wanted = work.wanted
        if wanted.is_all:
            form, kind = ("<f4", PayloadType.F32) if wanted.is_exact else ("<f2", PayloadType.F16)
            self._send(work, kind, logits.astype(form, copy=False).tobytes())
            return
        self._send(work, PayloadType.BYTES, b"".join(_pack(extract(row, self._span.start, wanted)) for row in logits))

    def send_stream(self, work: Pass, stream: Float32Array) -> None:
        """Sends the residual stream of the sampled rows."""
        self._send(work, PayloadType.F32, stream.astype("<f4", copy=False).tobytes())

    def send_rest(self, work: Pass, logits: Float32Array | None) -> None:
        """Sends all of this rank's logits in 16 bits."""
        if logits is not None:
            self._send(work, PayloadType.F16, logits.astype("<f2").tobytes())

    def _send(self, work: Pass, kind: PayloadType, content: bytes) -> None:
        if self._out.capacity_bytes < len(content):
            self._out = FrameBuffer(len(content))
        self._out.payload[: len(content)] = content
        self._out.seal(FrameTag(work.pass_id, NO_BLOCK, Phase.LOGITS).key(self._mesh.epoch), kind, len(content))
        exchange = Exchange()
        self._mesh.send(self._target, self._out, exchange)
        self._mesh.wait(exchange)


def first_speaker(spans: Sequence[Span]) -> int:
    """The lowest rank that has rows of the head: who tells the master of the residual stream."""
    return next(rank for rank, span in enumerate(spans) if span.size)


def with_streams(rows: Sequence[Row], stream: Float32Array) -> tuple[Row, ...]:
    """Each row with its own of ``stream``, f32 [n_rows, n_embd], which is copied."""
    return tuple(replace(row, stream=own.copy()) for row, own in zip(rows, stream, strict=True))


def _row_bytes(wanted: Wanted, span: Span) -> int:
    if wanted.is_all:
        return (_F32_BYTES if wanted.is_exact else 2) * span.size
    return 8 + 8 * min(wanted.n_best, _n_tokens(wanted, span)) + 4 * len(wanted.ids)


def _n_tokens(wanted: Wanted, span: Span) -> int:
    """How many of the rows are tokens."""
    return max(0, min(span.stop, wanted.n_tokens or span.stop) - span.start)


def _pack(part: Extract) -> bytes:
    arrays = part.ids.astype("<i4"), part.values.astype("<f4"), part.asked.astype("<f4")
    return struct.pack("<d", part.log_sum_exp) + b"".join(array.tobytes() for array in arrays)
