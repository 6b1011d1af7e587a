"""The conformance suite of allreduces: what every algorithm must do, in any format, on any number of ranks, whoever
contributes and whoever receives; and the arithmetic that each declares, written once more.

Subclass ``AllreduceSuite``, name the class ``Test...``, say which algorithm it is and implement ``cluster``. The suite
calls every rank's end from a thread of its own.
"""

import threading
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest

from tpi.cluster.allreduce.mpi import FEW_VALUES
from tpi.cluster.allreduce.payload import F16_MAX, INT8_MAX, PayloadFormat, slices_of
from tpi.errors import NumericError
from tpi.model.flow import Flow
from tpi.runtime.ggml.numbers import Numbers
from tpi.runtime.protocols import Allreduce, Float32Array, SumStep

N_EMBD = 96
MAX_TOKENS = 300
MAX_VALUES = N_EMBD * MAX_TOKENS
JOIN_TIMEOUT_S = 60.0

Format = pytest.mark.parametrize("payload_format", list(PayloadFormat), ids=lambda entry: entry.value)
Ranks = pytest.mark.parametrize("n_ranks", range(1, 9))
Partials = dict[int, Float32Array]


# The arithmetic.


def through(values: Float32Array, payload_format: PayloadFormat, whole: Float32Array | None = None) -> Float32Array:
    """What a payload with flat ``values`` decodes to, if its type was chosen for ``whole``."""
    largest = float(np.abs(values if whole is None else whole).max(initial=0.0))
    if payload_format is PayloadFormat.F16 and largest <= F16_MAX:
        return values.astype(np.float16).astype(np.float32)
    if payload_format is PayloadFormat.INT8 and largest <= INT8_MAX:
        return _through_int8(np.ascontiguousarray(values))
    return values.copy()


def _through_int8(values: Float32Array) -> Float32Array:
    """By the kernels themselves: processors differ in how they round the inverse of a scale."""
    numbers, decoded = Numbers(np.empty(values.size // 32 * 34, np.uint8)), np.empty_like(values)
    numbers.write_int8(values)
    numbers.read_int8(decoded)
    return decoded


def in_order(parts: Sequence[Float32Array]) -> Float32Array:
    """The sum in float32, from the first to the last."""
    total = parts[0].copy()
    for part in parts[1:]:
        total += part
    return total


def _one_shot(flow: Flow, partials: Partials, form: PayloadFormat) -> Float32Array:
    return in_order([through(partials[rank], form) for rank in flow.contributors])


def _star(flow: Flow, partials: Partials, form: PayloadFormat) -> Float32Array:
    return through(_one_shot(flow, partials, form), form)


def _two_shot(flow: Flow, partials: Partials, form: PayloadFormat) -> Float32Array:
    size = partials[flow.contributors[0]].size
    totals = [
        through(in_order([through(partials[r][cut], form, partials[r]) for r in flow.contributors]), form)
        for cut in slices_of(size, len(flow.receivers))
        if cut.stop > cut.start
    ]
    return np.concatenate(totals)


def _ring(flow: Flow, partials: Partials, form: PayloadFormat) -> Float32Array:
    ring, size, totals = flow.participants, partials[flow.contributors[0]].size, []
    for number, cut in enumerate(slices_of(size, len(ring))):
        total: Float32Array | None = None
        for rank in (*ring[number:], *ring[:number]):
            if rank in partials:
                own = partials[rank][cut]
                total = through(own if total is None else total + own, form)
        assert total is not None
        totals.append(total)
    return np.concatenate(totals)


def _tree(flow: Flow, partials: Partials, form: PayloadFormat) -> Float32Array:
    tree = flow.participants

    def climb(here: int) -> Float32Array | None:
        total = partials.get(tree[here])
        level = 1
        while not here & level and here + level < len(tree):
            below = climb(here + level)
            if below is not None:
                total = through(below, form) if total is None else total + through(below, form)
            level *= 2
        return total

    total = climb(0)
    assert total is not None
    return through(total, form)


def _mpi(flow: Flow, partials: Partials, form: PayloadFormat) -> Float32Array:
    is_few = partials[flow.contributors[0]].size <= FEW_VALUES
    return (_one_shot if is_few else _two_shot)(flow, partials, form)


ARITHMETIC = {
    "one-shot": _one_shot,
    "star": _star,
    "two-shot": _two_shot,
    "ring": _ring,
    "tree": _tree,
    "mpi": _mpi,
}


def expected_sum(algorithm: str, flow: Flow, partials: Partials, form: PayloadFormat) -> Float32Array:
    """What ``algorithm`` declares to be the sum of ``partials``."""
    if flow.is_local:
        return partials[flow.contributors[0]]
    used = PayloadFormat.F32 if flow.is_handed_over or flow.is_exact else form
    flat = {rank: partial.reshape(-1) for rank, partial in partials.items()}
    return ARITHMETIC[algorithm](flow, flat, used).reshape(partials[flow.contributors[0]].shape)


# The suite.


def flow_of(
    contributors: Sequence[int],
    receivers: Sequence[int],
    block: int = 1,
    is_handed_over: bool = False,
    is_exact: bool = False,
) -> Flow:
    return Flow(block, tuple(contributors), tuple(receivers), is_handed_over, is_exact=is_exact)


def everybody(n_ranks: int, block: int = 1) -> Flow:
    """All contribute and all receive."""
    return flow_of(range(n_ranks), range(n_ranks), block)


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


def add_up(end: Allreduce, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
    """One sum, from its start to its end."""
    end.start(step, partial, out)
    end.finish(step)


def _add_up_own(
    ends: Sequence[Allreduce], step: SumStep, partials: Sequence[Float32Array], outs: Sequence[Float32Array], rank: int
) -> None:
    add_up(ends[rank], step, partials[rank], outs[rank])


def sums(ends: Sequence[Allreduce], step: SumStep, partials: Partials) -> dict[int, Float32Array]:
    """One sum over all ranks that take part, by receiver; raises what a rank raised."""
    shape = partials[step.flow.contributors[0]].shape
    outs = {rank: np.full(shape, np.nan, dtype=np.float32) for rank in step.flow.receivers}

    def work(rank: int) -> None:
        if rank in step.flow.participants:
            add_up(ends[rank], step, partials.get(rank), outs.get(rank))

    for error in on_all_ranks(work, len(ends)):
        if error is not None:
            raise error
    return outs


def random_partials(
    random: np.random.Generator, contributors: Sequence[int], n_tokens: int, width: int = N_EMBD
) -> Partials:
    """Magnitudes far apart: any other order of the sum gives other bits."""
    scales = 10.0 ** random.uniform(-3, 3, size=len(contributors))
    shape = n_tokens, width
    return {
        rank: (random.standard_normal(shape) * scale).astype(np.float32)
        for rank, scale in zip(contributors, scales, strict=True)
    }


def assert_same_bits(ours: npt.NDArray[np.float32], expected: npt.NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


class AllreduceSuite:
    """The tests; each opens its own cluster."""

    algorithm = ""

    def cluster(self, n_ranks: int, payload_format: PayloadFormat) -> AbstractContextManager[list[Allreduce]]:
        """The ends of an allreduce over ``n_ranks`` ranks, by rank, for arrays of up to ``MAX_VALUES`` values."""
        raise NotImplementedError

    def check(self, ends: Sequence[Allreduce], step: SumStep, partials: Partials, form: PayloadFormat) -> None:
        expected = expected_sum(self.algorithm, step.flow, partials, form)
        for out in sums(ends, step, partials).values():
            assert_same_bits(out, expected)

    @Format
    @Ranks
    def test_equals_its_arithmetic_bit_for_bit(self, n_ranks: int, payload_format: PayloadFormat) -> None:
        random = np.random.default_rng(n_ranks)
        with self.cluster(n_ranks, payload_format) as ends:
            for block, n_tokens in enumerate([1, 7, MAX_TOKENS, 2]):
                partials = random_partials(random, range(n_ranks), n_tokens)
                self.check(ends, SumStep(9, everybody(n_ranks, block)), partials, payload_format)

    @Format
    @Ranks
    def test_whoever_contributes_and_whoever_receives(self, n_ranks: int, payload_format: PayloadFormat) -> None:
        """Ranks without a share, ranks that compute no further, hand-overs from one group to another."""
        random = np.random.default_rng(n_ranks)
        cases: list[tuple[Sequence[int], Sequence[int]]] = [
            ([0], range(n_ranks)),
            ([n_ranks - 1], range(n_ranks)),
            (range(n_ranks), [n_ranks - 1]),
        ]
        if n_ranks > 1:
            cases += [([0], [1]), ([1], [0]), (range(n_ranks - 1), range(1, n_ranks)), ([0, 1], [0])]
        for _ in range(5):
            size = int(random.integers(1, n_ranks + 1)), int(random.integers(1, n_ranks + 1))
            chosen = [sorted(random.choice(n_ranks, n, replace=False).tolist()) for n in size]
            cases.append((chosen[0], chosen[1]))
        with self.cluster(n_ranks, payload_format) as ends:
            for block, (contributors, receivers) in enumerate(cases):
                flow = flow_of(contributors, receivers, block, block % 3 == 1, is_exact=block % 3 == 2)
                partials = random_partials(random, flow.contributors, 5)
                self.check(ends, SumStep(0, flow), partials, payload_format)

    @Format
    @pytest.mark.parametrize("n_ranks", [1, 2, 3, 5])
    def test_out_may_be_the_partial(self, n_ranks: int, payload_format: PayloadFormat) -> None:
        partials = random_partials(np.random.default_rng(5), range(n_ranks), 4)
        arrays = {rank: partial.copy() for rank, partial in partials.items()}
        step = SumStep(0, everybody(n_ranks))
        with self.cluster(n_ranks, payload_format) as ends:
            raised = on_all_ranks(lambda rank: add_up(ends[rank], step, arrays[rank], arrays[rank]), n_ranks)
        assert raised == [None] * n_ranks
        for array in arrays.values():
            assert_same_bits(array, expected_sum(self.algorithm, step.flow, partials, payload_format))

    @Format
    def test_the_partial_may_change_once_a_sum_has_begun(self, payload_format: PayloadFormat) -> None:
        partials = random_partials(np.random.default_rng(6), range(3), 64)
        arrays = {rank: partial.copy() for rank, partial in partials.items()}
        outs = {rank: np.zeros_like(partial) for rank, partial in partials.items()}
        step = SumStep(0, everybody(3))

        def work(rank: int) -> None:
            ends[rank].start(step, arrays[rank], outs[rank])
            arrays[rank][:] = np.nan
            ends[rank].finish(step)

        with self.cluster(3, payload_format) as ends:
            assert on_all_ranks(work, 3) == [None] * 3
        for out in outs.values():
            assert_same_bits(out, expected_sum(self.algorithm, step.flow, partials, payload_format))

    @Format
    @pytest.mark.parametrize("n_ranks", [2, 4])
    def test_two_parts_under_way(self, n_ranks: int, payload_format: PayloadFormat) -> None:
        """As in a prefill: one part of a pass is summed while the next is computed, at each rank's own pace."""
        random = np.random.default_rng(7)
        n_blocks = 8
        flows = [everybody(n_ranks, block) for block in range(n_blocks)]
        partials = [[random_partials(random, range(n_ranks), 70 + part) for part in (0, 1)] for _ in flows]
        wrong: list[tuple[int, int, int]] = []

        def work(rank: int) -> None:
            pace = np.random.default_rng(rank)
            outs = [np.zeros((70 + part, N_EMBD), np.float32) for part in (0, 1)]

            def finish(block: int, part: int) -> None:
                ends[rank].finish(SumStep(3, flows[block], part))
                expected = expected_sum(self.algorithm, flows[block], partials[block][part], payload_format)
                if not np.array_equal(outs[part], expected):
                    wrong.append((rank, block, part))

            for block in range(n_blocks):
                for part in (0, 1):
                    if block:
                        finish(block - 1, part)
                    threading.Event().wait(float(pace.uniform(0, 0.003)))
                    ends[rank].start(SumStep(3, flows[block], part), partials[block][part][rank], outs[part])
            for part in (0, 1):
                finish(n_blocks - 1, part)

        with self.cluster(n_ranks, payload_format) as ends:
            assert on_all_ranks(work, n_ranks) == [None] * n_ranks
        assert wrong == []

    @pytest.mark.parametrize("payload_format", [PayloadFormat.F16, PayloadFormat.INT8])
    def test_what_a_format_cannot_hold_arrives(self, payload_format: PayloadFormat) -> None:
        """Contributions or totals beyond it travel as f32, neither as infinity nor cut off."""
        cases = [(65504.0, 0.0), (65505.0, 1.0), (1e30, -1e30), (60000.0, 60000.0)]
        with self.cluster(2, payload_format) as ends:
            for block, values in enumerate(cases):
                partials = {rank: np.full((1, N_EMBD), value, dtype=np.float32) for rank, value in enumerate(values)}
                flow = everybody(2, block)
                for out in sums(ends, SumStep(0, flow), partials).values():
                    assert out[0, 0] == pytest.approx(sum(values), rel=1e-3)
                    assert_same_bits(out, expected_sum(self.algorithm, flow, partials, payload_format))

    @Format
    @pytest.mark.parametrize("n_ranks", [1, 2, 3, 8])
    def test_a_value_that_is_not_finite_is_named_on_every_rank(
        self, n_ranks: int, payload_format: PayloadFormat
    ) -> None:
        """The rank is named, everybody raises, and the next sum works."""
        good = {rank: np.ones((1, N_EMBD), dtype=np.float32) for rank in range(n_ranks)}
        with self.cluster(n_ranks, payload_format) as ends:
            for number, bad in enumerate([np.nan, np.inf, -np.inf]):
                culprit, block = (n_ranks // 2 + number) % n_ranks, 31 + number
                partials = [np.ones((3, N_EMBD), dtype=np.float32) for _ in range(n_ranks)]
                partials[culprit][2, 17 * number] = bad
                outs = [np.zeros((3, N_EMBD), dtype=np.float32) for _ in range(n_ranks)]
                step = SumStep(2 * number, everybody(n_ranks, block))
                for error in on_all_ranks(partial(_add_up_own, ends, step, partials, outs), n_ranks):
                    assert isinstance(error, NumericError)
                    assert f"rank {culprit} " in str(error) and f"block {block} " in str(error)
                for out in sums(ends, SumStep(2 * number + 1, everybody(n_ranks)), good).values():
                    np.testing.assert_allclose(out, n_ranks, rtol=1e-2)

    def test_a_sum_beyond_float32_is_an_error(self) -> None:
        partials = [np.full((1, N_EMBD), 3e38, dtype=np.float32) for _ in range(2)]
        outs = [np.zeros((1, N_EMBD), dtype=np.float32) for _ in range(2)]
        step = SumStep(0, everybody(2))
        with self.cluster(2, PayloadFormat.F32) as ends:
            raised = on_all_ranks(lambda rank: add_up(ends[rank], step, partials[rank], outs[rank]), 2)
        for error in raised:
            assert isinstance(error, NumericError)
            assert "too large" in str(error)

    @pytest.mark.parametrize("n_ranks", [4, 7])
    def test_many_sums_in_a_row(self, n_ranks: int) -> None:
        """Ranks run ahead of each other without a common start: nothing is mixed up."""
        n_sums = 60
        wrong: list[tuple[int, int]] = []

        def work(rank: int) -> None:
            out = np.zeros((1, N_EMBD), dtype=np.float32)
            for number in range(n_sums):
                flow = flow_of(range(number % 3, n_ranks), range(n_ranks), number % 10)
                partial = np.full((1, N_EMBD), rank + number % 13, dtype=np.float32)
                own = partial if rank in flow.contributors else None
                add_up(ends[rank], SumStep(number // 10, flow), own, out)
                total = sum(r + number % 13 for r in flow.contributors)
                if not np.allclose(out, total, rtol=0.02):
                    wrong.append((rank, number))

        with self.cluster(n_ranks, PayloadFormat.F16) as ends:
            assert on_all_ranks(work, n_ranks) == [None] * n_ranks
        assert wrong == []
