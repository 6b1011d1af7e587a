"""One-shot: every contributor sends its partial result to every receiver, which adds them itself.

Costs τ + (N-1)·S/B (τ one-way latency, S encoded payload, B port rate, N ranks): one hop, for high latency and small S.

Arithmetic: contributions, encoded and decoded, are added in float32 in rank order. The total is not encoded.
"""

from typing import ClassVar

from tpi.cluster.allreduce.algorithm import Cost
from tpi.cluster.allreduce.payload import staggered
from tpi.cluster.allreduce.phases import Phased, Shape
from tpi.model.flow import Flow


class OneShot(Phased):
    """Satisfies ``algorithm.Algorithm``."""

    name: ClassVar[str] = "one-shot"

    def shape(self, flow: Flow, rank: int) -> Shape:
        receives = rank in flow.receivers
        return Shape(
            sendings=tuple((0, other) for other in staggered(flow.receivers, rank)),
            own_slice=0 if receives else None,
            contributors=flow.contributors if receives else (),
        )

    @staticmethod
    def cost(n_ranks: int) -> Cost:
        return Cost(1, n_ranks - 1, 2 * (n_ranks - 1))

    @staticmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        return n_ranks * n_values
