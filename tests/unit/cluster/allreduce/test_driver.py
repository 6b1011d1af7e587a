"""Sums of a pass in two parts, where ranks do not keep step with each other."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.runtime.protocols import Float32Array, SumStep
from tpi.testing.allreduce_suite import everybody, on_all_ranks
from tpi.testing.meshes import open_sums

N_RANKS, N_BLOCKS, N_VALUES = 3, 6, 6000
FEW = 64
LATE_S = 0.05
TIMEOUT_S = 20.0


class Rank:
    """Begins and ends sums of ones, and checks what they come to."""

    def __init__(self, sums: Sums, widths: Callable[[int], int]) -> None:
        self._sums, self._widths = sums, widths
        self._outs: dict[int, tuple[SumStep, Float32Array]] = {}

    def start(self, block: int, part: int) -> None:
        step, n_values = SumStep(1, everybody(N_RANKS, block), part), self._widths(block)
        out = np.zeros((1, n_values), np.float32)
        self._outs[part] = step, out
        self._sums.start(step, np.full((1, n_values), block + part / 2, np.float32), out)

    def finish(self, block: int, part: int) -> None:
        if block:
            step, out = self._outs.pop(part)
            self._sums.finish(step)
            assert (out == N_RANKS * (block + part / 2)).all()

    def eager(self) -> None:
        """As a rank whose blocks are one piece: each part goes on as soon as it can."""
        for block in range(1, N_BLOCKS):
            for part in (0, 1):
                self.finish(block - 1, part)
                self.start(block, part)

    def slow(self) -> None:
        """As a rank whose blocks are several pieces: both parts end before either goes on; and it is late with the
        second."""
        for block in range(1, N_BLOCKS):
            self.finish(block - 1, 0)
            self.finish(block - 1, 1)
            self.start(block, 0)
            time.sleep(LATE_S)
            self.start(block, 1)

    def run(self, is_slow: bool) -> None:
        (self.slow if is_slow else self.eager)()
        for part in (0, 1):
            self.finish(N_BLOCKS - 1, part)


WIDTHS: dict[str, Callable[[int], int]] = {
    "all large": lambda block: N_VALUES,
    "small and large": lambda block: N_VALUES if block % 2 else FEW,
    "all small": lambda block: FEW,
}


@pytest.mark.parametrize("with_helper", [True, False])
@pytest.mark.parametrize("slow", [(0,), (1,), (0, 2), ()])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("algorithm", ["star", "one-shot", "two-shot", "ring", "tree"])
def test_ranks_that_go_ahead_wait_for_the_others(
    algorithm: str, widths: str, slow: tuple[int, ...], with_helper: bool
) -> None:
    scale = Scale(PayloadFormat.F32, N_VALUES, 2)
    with open_sums(N_RANKS, ALGORITHMS[algorithm], scale, max_few_values=FEW, with_helper=with_helper) as shared:
        timer = threading.Timer(TIMEOUT_S, shared.abort)
        timer.start()
        try:
            raised = on_all_ranks(lambda rank: Rank(shared.ends[rank], WIDTHS[widths]).run(rank in slow), N_RANKS)
        finally:
            timer.cancel()
    assert raised == [None] * N_RANKS
