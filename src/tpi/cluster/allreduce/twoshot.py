"""Two-shot: each receiver adds up one slice of the values, then sends its sum to the others.

Costs 2τ + 2(N-1)·S/(N·B) (τ one-way latency, S encoded payload, B port rate, N ranks): for many devices and large S.

Arithmetic: a contribution travels in one type, all its slices; they are decoded and added in float32 in rank order. The
total of each slice passes through the payload format once more, on its own.
"""

from typing import ClassVar

from tpi.cluster.allreduce.algorithm import Cost
from tpi.cluster.allreduce.payload import staggered
from tpi.cluster.allreduce.phases import Phased, Shape
from tpi.model.flow import Flow


class TwoShot(Phased):
    """Satisfies ``algorithm.Algorithm``. Slice number i is that of the i-th receiver."""

    name: ClassVar[str] = "two-shot"

    def shape(self, flow: Flow, rank: int) -> Shape:
        others = staggered(flow.receivers, rank)
        slices = tuple((flow.receivers.index(other), other) for other in others)
        receives = rank in flow.receivers
        return Shape(
            n_slices=len(flow.receivers),
            sendings=slices if rank in flow.contributors else (),
            own_slice=flow.receivers.index(rank) if receives else None,
            contributors=flow.contributors if receives else (),
            sharing=tuple(others) if receives else None,
            totals=slices if receives else (),
        )

    @staticmethod
    def cost(n_ranks: int) -> Cost:
        return Cost(2, 2 * (n_ranks - 1) / n_ranks, 4 * (n_ranks - 1))

    @staticmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        return 2 * n_values + 32 * n_ranks
