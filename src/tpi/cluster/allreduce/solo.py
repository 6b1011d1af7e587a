"""The allreduce of a cluster of one rank: a copy, without any encoding. No links; runs in the caller's thread."""

from tpi.cluster.allreduce.counters import SumCounters
from tpi.cluster.allreduce.payload import copy_alone
from tpi.runtime.protocols import Float32Array, SumStep


class SoloAllreduce:
    """Satisfies ``tpi.runtime.protocols.Allreduce`` for rank 0 of 1."""

    def __init__(self) -> None:
        self.counters = SumCounters()

    def sum(self, step: SumStep, partial: Float32Array | None, out: Float32Array) -> None:
        """See ``Allreduce.sum``."""
        assert partial is not None, "who is alone contributes"
        with self.counters.timed():
            copy_alone(step, 0, partial, out)
