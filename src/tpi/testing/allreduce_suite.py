"""The conformance suite of ``Allreduce``: what every algorithm must do, on any number of ranks and in either format.

Subclass ``AllreduceSuite``, name the class ``Test...`` and implement ``cluster``. The suite calls every rank's end
from a thread of its own. No reference to an implementation, except to the arithmetic that defines the answer.
"""

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest

from tpi.cluster.allreduce.payload import F16_MAX, PayloadFormat
from tpi.errors import NumericError
from tpi.runtime.protocols import Allreduce, Float32Array, SumStep

N_EMBD = 96
MAX_TOKENS = 512
MAX_VALUES = N_EMBD * MAX_TOKENS
JOIN_TIMEOUT_S = 60.0

Format = pytest.mark.parametrize("payload_format", list(PayloadFormat))
Ranks = pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])


def through_format(values: Float32Array, payload_format: PayloadFormat) -> Float32Array:
    """What a payload with ``values`` decodes to."""
    if payload_format is PayloadFormat.F32 or not np.abs(values).max() <= F16_MAX:
        return values
    return values.astype(np.float16).astype(np.float32)


def reference_sum(partials: list[Float32Array], payload_format: PayloadFormat) -> Float32Array:
    """The exact answer: decoded contributions added in float32 in rank order, through the format once more."""
    total = through_format(partials[0], payload_format).copy()
    for partial in partials[1:]:
        total += through_format(partial, payload_format)
    return through_format(total, payload_format)


def on_all_ranks(work: Callable[[int], None], n_ranks: int) -> list[BaseException | None]:
    """Run ``work(rank)`` in a thread per rank; returns what each raised."""
    raised: list[BaseException | None] = [None] * n_ranks

    def run(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:
            raised[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(n_ranks)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_TIMEOUT_S)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs in the allreduce"
    return raised


class AllreduceSuite:
    """The tests; each opens its own cluster."""

    def cluster(self, n_ranks: int, payload_format: PayloadFormat) -> AbstractContextManager[list[Allreduce]]:
        """The ends of an allreduce over ``n_ranks`` ranks, by rank, for arrays of up to ``MAX_VALUES`` values."""
        raise NotImplementedError

    def sums(
        self, ends: list[Allreduce], step: SumStep, partials: dict[int, Float32Array], shape: tuple[int, int]
    ) -> list[Float32Array]:
        """One sum over all ranks; raises what a rank raised."""
        outs = [np.full(shape, np.nan, dtype=np.float32) for _ in ends]
        raised = on_all_ranks(lambda rank: ends[rank].sum(step, partials.get(rank), outs[rank]), len(ends))
        for error in raised:
            if error is not None:
                raise error
        return outs

    @Format
    @Ranks
    def test_equals_the_reference_bit_for_bit(self, n_ranks: int, payload_format: PayloadFormat) -> None:
        random = np.random.default_rng(n_ranks)
        with self.cluster(n_ranks, payload_format) as ends:
            for block, n_tokens in enumerate([1, 2, 7, 64, 1, MAX_TOKENS, 3]):
                # Magnitudes far apart: any other order of the sum gives other bits.
                scales = 10.0 ** random.uniform(-3, 3, size=n_ranks)
                values = [random.standard_normal((n_tokens, N_EMBD)) * scale for scale in scales]
                partials = [value.astype(np.float32) for value in values]
                step = SumStep(pass_id=9, block=block, contributors=tuple(range(n_ranks)))
                outs = self.sums(ends, step, dict(enumerate(partials)), (n_tokens, N_EMBD))
                expected = partials[0] if n_ranks == 1 else reference_sum(partials, payload_format)
                for out in outs:
                    np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))

    @Format
    @pytest.mark.parametrize("contributors", [(0,), (2,), (1, 2), (0, 2), (1,)])
    def test_ranks_that_hold_nothing_get_the_sum_too(
        self, contributors: tuple[int, ...], payload_format: PayloadFormat
    ) -> None:
        random = np.random.default_rng(4)
        partials = {rank: random.standard_normal((5, N_EMBD)).astype(np.float32) for rank in contributors}
        with self.cluster(3, payload_format) as ends:
            outs = self.sums(ends, SumStep(0, 1, contributors), partials, (5, N_EMBD))
        expected = reference_sum([partials[rank] for rank in contributors], payload_format)
        for out in outs:
            np.testing.assert_array_equal(out.view(np.uint32), expected.view(np.uint32))

    @Format
    @Ranks
    def test_out_may_be_the_partial(self, n_ranks: int, payload_format: PayloadFormat) -> None:
        random = np.random.default_rng(5)
        partials = [random.standard_normal((4, N_EMBD)).astype(np.float32) for _ in range(n_ranks)]
        arrays = [partial.copy() for partial in partials]
        step = SumStep(0, 0, tuple(range(n_ranks)))
        with self.cluster(n_ranks, payload_format) as ends:
            raised = on_all_ranks(lambda rank: ends[rank].sum(step, arrays[rank], arrays[rank]), n_ranks)
        assert raised == [None] * n_ranks
        expected = partials[0] if n_ranks == 1 else reference_sum(partials, payload_format)
        for array in arrays:
            np.testing.assert_array_equal(array, expected)

    @pytest.mark.parametrize("values", [(65504.0, 0.0), (65505.0, 1.0), (1e30, -1e30), (60000.0, 60000.0)])
    def test_what_f16_cannot_hold_arrives(self, values: tuple[float, float]) -> None:
        """Contributions or totals beyond 65504 travel as f32, neither as infinity nor cut off."""
        partials = [np.full((1, N_EMBD), value, dtype=np.float32) for value in values]
        with self.cluster(2, PayloadFormat.F16) as ends:
            outs = self.sums(ends, SumStep(0, 0, (0, 1)), dict(enumerate(partials)), (1, N_EMBD))
        for out in outs:
            np.testing.assert_array_equal(out, reference_sum(partials, PayloadFormat.F16))
            assert out[0, 0] == pytest.approx(sum(values), rel=1e-3)

    @Format
    @Ranks
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_a_value_that_is_not_finite_is_named_on_every_rank(
        self, n_ranks: int, payload_format: PayloadFormat, bad: float
    ) -> None:
        """The rank is named, everybody raises, and the next sum works."""
        culprit = n_ranks // 2
        partials = [np.ones((3, N_EMBD), dtype=np.float32) for _ in range(n_ranks)]
        partials[culprit][2, 17] = bad
        outs = [np.zeros((3, N_EMBD), dtype=np.float32) for _ in range(n_ranks)]
        step = SumStep(6, 31, tuple(range(n_ranks)))
        with self.cluster(n_ranks, payload_format) as ends:
            raised = on_all_ranks(lambda rank: ends[rank].sum(step, partials[rank], outs[rank]), n_ranks)
            for error in raised:
                assert isinstance(error, NumericError)
                assert f"rank {culprit} " in str(error) and "block 31 " in str(error)
            good = {rank: np.ones((1, N_EMBD), dtype=np.float32) for rank in range(n_ranks)}
            again = self.sums(ends, SumStep(7, 0, step.contributors), good, (1, N_EMBD))
        for out in again:
            np.testing.assert_array_equal(out, np.full((1, N_EMBD), n_ranks, dtype=np.float32))

    def test_a_sum_beyond_float32_is_an_error(self) -> None:
        partials = [np.full((1, N_EMBD), 3e38, dtype=np.float32) for _ in range(2)]
        outs = [np.zeros((1, N_EMBD), dtype=np.float32) for _ in range(2)]
        with self.cluster(2, PayloadFormat.F32) as ends:
            raised = on_all_ranks(lambda rank: ends[rank].sum(SumStep(0, 0, (0, 1)), partials[rank], outs[rank]), 2)
        for error in raised:
            assert isinstance(error, NumericError)
            assert "too large" in str(error)

    @Format
    def test_many_sums_in_a_row(self, payload_format: PayloadFormat) -> None:
        """Ranks run ahead of each other without a common start: nothing is mixed up."""
        n_ranks, n_sums = 4, 300
        wrong: list[tuple[int, int]] = []
        with self.cluster(n_ranks, payload_format) as ends:

            def work(rank: int) -> None:
                out = np.zeros((1, N_EMBD), dtype=np.float32)
                for number in range(n_sums):
                    contributors = tuple(range(number % 2, n_ranks))
                    partial = np.full((1, N_EMBD), rank + number % 13, dtype=np.float32)
                    ends[rank].sum(
                        SumStep(number // 10, number % 10, contributors),
                        partial if rank in contributors else None,
                        out,
                    )
                    expected = sum(r + number % 13 for r in contributors)
                    if not (out == expected).all():
                        wrong.append((rank, number))

            raised = on_all_ranks(work, n_ranks)
        assert raised == [None] * n_ranks
        assert wrong == []
