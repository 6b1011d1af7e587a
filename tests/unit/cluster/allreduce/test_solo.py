"""The allreduce of one rank: a copy of the same bits, and a check."""

import numpy as np
import pytest

from tpi.cluster.allreduce.solo import SoloAllreduce
from tpi.errors import NumericError
from tpi.runtime.protocols import Allreduce, SumStep

STEP = SumStep(3, 7, (0,))


def test_copies_without_encoding() -> None:
    solo: Allreduce = SoloAllreduce()
    partial = np.array([[1e30, 1 / 3], [-1e-30, 70000.1]], dtype=np.float32)
    out = np.zeros_like(partial)
    solo.sum(STEP, partial, out)
    np.testing.assert_array_equal(out, partial)


def test_in_place_changes_nothing() -> None:
    solo = SoloAllreduce()
    values = np.array([[1.5, -2.5]], dtype=np.float32)
    solo.sum(STEP, values, values)
    np.testing.assert_array_equal(values, [[1.5, -2.5]])
    assert (solo.counters.n_sums, solo.counters.n_bytes_sent) == (1, 0)


def test_names_the_block_that_is_not_finite() -> None:
    partial = np.array([[1.0, np.inf]], dtype=np.float32)
    with pytest.raises(NumericError, match=r"rank 0 .* block 7 of pass 3"):
        SoloAllreduce().sum(STEP, partial, np.zeros_like(partial))
