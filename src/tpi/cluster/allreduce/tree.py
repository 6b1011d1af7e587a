"""The tree: sums climb a binomial tree to the lowest rank, and the total comes back down.

Costs 2⌈log₂N⌉·(τ + S/B) (τ one-way latency, S encoded payload, B port rate, N ranks). To compare with.

Arithmetic: participant number p adds, in float32, what participants p+1, p+2, p+4, … have added up, in this order, each
encoded once on its way. The total passes through the payload format once more.
"""

from collections.abc import Sequence
from math import ceil, log2
from typing import ClassVar

import numpy as np

from tpi.cluster.allreduce.algorithm import Buffers, Cost, Scale, Waits, keys_of
from tpi.cluster.allreduce.arithmetic import Arithmetic
from tpi.cluster.allreduce.payload import NO_RANK, PayloadBuffer, PayloadFormat, raise_fault
from tpi.cluster.mesh.datalink import Exchange, Incoming
from tpi.cluster.mesh.mesh import Mesh
from tpi.runtime.protocols import Float32Array, SumStep


class Tree:
    """Satisfies ``algorithm.Algorithm``."""

    name: ClassVar[str] = "tree"

    def __init__(self, mesh: Mesh, scale: Scale) -> None:
        self._mesh, self.scale, self._math = mesh, scale, scale.arithmetic
        self._buffers = [Buffers(scale.max_values) for _ in range(scale.n_parts)]

    @staticmethod
    def cost(n_ranks: int) -> Cost:
        """See ``Algorithm``."""
        height = ceil(log2(n_ranks))
        return Cost(2 * height, 2 * height, 4 * height)

    @staticmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        """See ``Algorithm``."""
        return 6 * n_values

    def run(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> Waits:
        """See ``Algorithm``. The frame that goes up takes the total afterwards."""
        mesh, buffers = self._mesh, self._buffers[step.part]
        partial_key, total_key = keys_of(step, mesh.epoch)
        values = partial if partial is not None else out
        assert values is not None, "who takes part contributes or receives"
        parent, children = _place(step.flow.participants, mesh.rank)
        frame, below = buffers.frame("frame"), buffers.frame("child")
        total = _Sum(self._math, values.size, mesh.rank, partial)
        for child in children:
            exchange = Exchange()
            mesh.expect(mesh.sources({child: Incoming(below)}), partial_key, exchange)
            yield exchange
            total.add(below, mesh.name_of(child))
        exchange = Exchange()
        total.put(frame, total_key if parent is None else partial_key, self.scale.format_of(step))
        if parent is not None:
            mesh.send(mesh.targets([parent]), frame, exchange)
            mesh.expect(mesh.sources({parent: Incoming(frame)}), total_key, exchange)
            yield exchange
        mesh.send(mesh.targets(children[::-1]), frame, exchange)
        yield exchange
        if out is not None:
            raise_fault(step, frame.fault)
            frame.check(out.size, "the tree")
            self._math.get(frame, out)


def _place(tree: Sequence[int], rank: int) -> tuple[int | None, list[int]]:
    """The rank's parent and children: participant p hangs below p without its lowest bit."""
    here, children, level = tree.index(rank), [], 1
    while not here & level and here + level < len(tree):
        children.append(tree[here + level])
        level *= 2
    return tree[here & (here - 1)] if here else None, children


class _Sum:
    """What a participant has added up so far."""

    def __init__(self, arithmetic: Arithmetic, n_values: int, rank: int, own: Float32Array | None) -> None:
        self._math, self._rank = arithmetic, rank
        self._values = np.empty(n_values, np.float32)
        self._is_empty = own is None
        self._fault: int | None = None
        if own is not None:
            np.copyto(self._values, own)
            self._fault = None if self._math.is_finite(own) else rank

    def add(self, frame: PayloadBuffer, sender: str) -> None:
        """Adds what ``frame`` holds, if anything."""
        if frame.is_nothing:
            return
        if frame.fault is not None:
            self._fault = frame.fault if self._fault is None else self._fault
            return
        frame.check(self._values.size, sender)
        came = np.empty_like(self._values)
        self._math.get(frame, came)
        if self._is_empty:
            self._is_empty, self._values = False, came
            return
        with np.errstate(over="ignore", invalid="ignore"):
            np.add(self._values, came, out=self._values)
        if self._fault is None and not self._math.is_finite(self._values):
            self._fault = NO_RANK

    def put(self, frame: PayloadBuffer, key: bytes, payload_format: PayloadFormat) -> None:
        """Makes the frame that says it."""
        if self._fault is not None:
            frame.put_fault(key, self._fault)
        elif self._is_empty:
            frame.put_nothing(key)
        else:
            payload_type = self._math.choose_type(self._values, payload_format)
            self._math.put(frame, key, payload_type, self._values)
