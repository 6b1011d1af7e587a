"""The star: all send their partial results to one rank, which adds them and sends back the total.

Costs 2τ + N·S/B (τ one-way latency, S encoded payload, B port rate, N ranks). The one in the middle is the lowest rank
that needs the sum: the master, unless it holds nothing. The paper's algorithm; it needs no links between workers.

Arithmetic: contributions, encoded and decoded, are added in float32 in rank order; the total passes through the payload
format once more.
"""

from typing import ClassVar

from tpi.cluster.allreduce.algorithm import Cost
from tpi.cluster.allreduce.phases import AT_ONCE_VALUES, Phased, Shape
from tpi.model.flow import Flow


class Star(Phased):
    """Satisfies ``algorithm.Algorithm``."""

    name: ClassVar[str] = "star"
    receives_singly: ClassVar[bool] = True

    def shape(self, flow: Flow, rank: int) -> Shape:
        middle = flow.receivers[0]
        if rank == middle:
            others = tuple(other for other in flow.receivers if other != rank)
            return Shape(own_slice=0, contributors=flow.contributors, sharing=others)
        return Shape(
            sendings=((0, middle),) if rank in flow.contributors else (),
            totals=((0, middle),) if rank in flow.receivers else (),
        )

    @staticmethod
    def cost(n_ranks: int) -> Cost:
        return Cost(2, n_ranks, 2 * (n_ranks - 1))

    @staticmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        return n_ranks * n_values if n_ranks * n_values <= AT_ONCE_VALUES else 2 * n_values
