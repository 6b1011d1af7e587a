"""The ring: sums travel around it, a slice from every rank at once, and then the totals do.

Costs 2(N - 1)·(τ + S/(N·B)) (τ one-way latency, S encoded payload, B port rate, N ranks): each port carries little, but
every hop costs a latency. To compare with.

Arithmetic: slice number c begins at participant number c and goes round upwards; each participant decodes what it gets,
adds its own contribution as it is in float32, and encodes the sum. The last one's sum is the total.
"""

from typing import ClassVar

import numpy as np

from tpi.cluster.allreduce.algorithm import Buffers, Cost, Scale, Waits, keys_of
from tpi.cluster.allreduce.payload import NO_RANK, PayloadBuffer, raise_fault, slices_of
from tpi.cluster.mesh.datalink import Exchange, Incoming
from tpi.cluster.mesh.mesh import Mesh
from tpi.runtime.protocols import Float32Array, SumStep


class Ring:
    """Satisfies ``algorithm.Algorithm``."""

    name: ClassVar[str] = "ring"

    def __init__(self, mesh: Mesh, scale: Scale) -> None:
        self._mesh, self.scale, self._math = mesh, scale, scale.arithmetic
        self._buffers = [Buffers(scale.max_values) for _ in range(scale.n_parts)]
        self._own = [np.empty(scale.max_values, np.float32) for _ in range(scale.n_parts)]

    @staticmethod
    def cost(n_ranks: int) -> Cost:
        """See ``Algorithm``."""
        return Cost(2 * (n_ranks - 1), 2 * (n_ranks - 1) / n_ranks, 4 * (n_ranks - 1))

    @staticmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        """See ``Algorithm``."""
        return 3 * n_values + 32 * n_ranks

    def run(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> Waits:
        """See ``Algorithm``. Frame c of a rank holds slice c, first its sum so far, then its total."""
        mesh, buffers, ring = self._mesh, self._buffers[step.part], step.flow.participants
        keys, n = keys_of(step, mesh.epoch), len(ring)
        values = partial if partial is not None else out
        assert values is not None, "who takes part contributes or receives"
        slices, capacity = slices_of(values.size, n), slices_of(self.scale.max_values, n)[0].stop
        here = ring.index(mesh.rank)
        to_next = mesh.targets([ring[(here + 1) % n]])
        own = None
        if partial is not None:
            own = self._own[step.part][: partial.size]
            np.copyto(own, partial)
        first = buffers.frame("slice", here, capacity)
        self._contribute(step, first, None if own is None else own[slices[here]], True, keys[n == 1])
        for hop in range(2 * (n - 1)):
            is_total = hop >= n - 1
            sent, came = (here - hop) % n, (here - hop - 1) % n
            exchange, key = Exchange(), keys[is_total]
            frame = buffers.frame("slice", came, capacity)
            mesh.send(to_next, buffers.frame("slice", sent, capacity), exchange)
            mesh.expect(mesh.sources({ring[here - 1]: Incoming(frame)}), key, exchange)
            yield exchange
            is_next_total = hop + 1 >= n - 1
            if not is_total:
                self._contribute(step, frame, None if own is None else own[slices[came]], False, keys[is_next_total])
        if out is not None:
            for number, place in enumerate(slices):
                frame = buffers.frame("slice", number, capacity)
                raise_fault(step, frame.fault)
                frame.check(place.stop - place.start, "the ring")
                self._math.get(frame, out[place])

    def _contribute(
        self, step: SumStep, frame: PayloadBuffer, own: Float32Array | None, is_first: bool, key: bytes
    ) -> None:
        """Adds this rank's part to what ``frame`` holds, which leaves with ``key`` afterwards."""
        if not is_first and frame.fault is not None:
            frame.put_fault(key, frame.fault)
            return
        if own is None:
            if is_first:
                frame.put_nothing(key)
            else:
                frame.seal(key, frame.payload_type, frame.n_payload_bytes)
            return
        if not is_first and not frame.is_nothing:
            frame.check(own.size, "the ring")
            came = np.empty_like(own)
            self._math.get(frame, came)
            is_own_finite = self._math.is_finite(own)
            with np.errstate(over="ignore", invalid="ignore"):
                np.add(came, own, out=own)
        else:
            is_own_finite = self._math.is_finite(own)
        if self._math.is_finite(own):
            payload_type = self._math.choose_type(own, self.scale.format_of(step))
            self._math.put(frame, key, payload_type, own)
        else:
            frame.put_fault(key, NO_RANK if is_own_finite else self._mesh.rank)
