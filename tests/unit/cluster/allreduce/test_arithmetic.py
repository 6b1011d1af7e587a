"""The arithmetic of sums, in Python and in C to the same bits: what fits a format, encoding, adding in order, and whose
fault it is when a sum does not exist."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.allreduce.arithmetic import Arithmetic, NativeArithmetic, largest_of, make_arithmetic
from tpi.cluster.allreduce.payload import F16_MAX, F32_MAX, INT8_MAX, NO_RANK, PayloadBuffer, PayloadFormat
from tpi.cluster.mesh.frames import HEADER_BYTES, FrameTag, PayloadType, Phase
from tpi.errors import ProtocolError
from tpi.native.exchange import load_helper
from tpi.runtime.protocols import Float32Array

KEY = FrameTag(1, 2, Phase.PARTIAL).key(1)
NUMBERS = (PayloadType.F32, PayloadType.F16, PayloadType.INT8)
SIZES = [32, 96, 2048, 2080, 8192, 8224, 20_000]
"""About the runs in which values are looked at."""

KINDS = [False, True] if load_helper() is not None else [False]


@pytest.fixture(params=KINDS, ids=["python", "C"][: len(KINDS)])
def arithmetic(request: pytest.FixtureRequest) -> Arithmetic:
    made = make_arithmetic(None, request.param)
    assert isinstance(made, NativeArithmetic) == request.param
    return made


def array(values: Sequence[float]) -> Float32Array:
    return np.array(values, np.float32)


def frame_of(arithmetic: Arithmetic, values: Float32Array, kind: PayloadType = PayloadType.F32) -> PayloadBuffer:
    frame = PayloadBuffer(values.size)
    arithmetic.put(frame, KEY, kind, values)
    return frame


def added(arithmetic: Arithmetic, frames: Sequence[PayloadBuffer], n_values: int) -> tuple[Float32Array, int | None]:
    """The sum, and who spoilt it; ranks are 10, 11 and so on."""
    out = np.full(n_values, np.nan, np.float32)
    return out, arithmetic.add(arithmetic.row(frames, range(10, 10 + len(frames))), out)


LIMITS = {PayloadFormat.F32: F32_MAX, PayloadFormat.F16: F16_MAX, PayloadFormat.INT8: INT8_MAX}
TYPES = {
    PayloadFormat.F32: PayloadType.F32,
    PayloadFormat.F16: PayloadType.F16,
    PayloadFormat.INT8: PayloadType.INT8,
}


@pytest.mark.parametrize("payload_format", PayloadFormat)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sign", [1, -1])
def test_a_format_is_used_up_to_its_limit(
    arithmetic: Arithmetic, payload_format: PayloadFormat, size: int, sign: int
) -> None:
    limit, usual = np.float32(LIMITS[payload_format]), TYPES[payload_format]
    assert largest_of(payload_format) == (usual, LIMITS[payload_format])
    for index in (0, size // 2, size - 1):
        values = np.zeros(size, np.float32)
        values[index] = sign * limit
        assert arithmetic.choose_type(values, payload_format) is usual
        with np.errstate(over="ignore"):
            values[index] = sign * np.nextafter(limit, np.float32(np.inf))
        assert arithmetic.choose_type(values, payload_format) is PayloadType.F32
        for bad in (np.nan, np.inf, -np.inf):
            values[index] = bad
            assert arithmetic.choose_type(values, payload_format) is PayloadType.F32
            assert not arithmetic.is_finite(values)
    assert arithmetic.choose_type(np.full(size, limit), payload_format) is usual, "however many there are"
    assert arithmetic.is_finite(np.full(size, F32_MAX, np.float32))


@pytest.mark.parametrize("kind", NUMBERS)
def test_what_was_put_is_what_is_got(arithmetic: Arithmetic, kind: PayloadType) -> None:
    values = np.random.default_rng(1).standard_normal(96).astype(np.float32)
    frame, out = frame_of(arithmetic, values, kind), np.empty(96, np.float32)
    arithmetic.get(frame, out)
    frame.check(96, "x")
    tolerance = {PayloadType.F32: 0.0, PayloadType.F16: 1e-3, PayloadType.INT8: 2e-2}[kind]
    assert np.abs(out - values).max() <= tolerance * 4
    other = np.empty(96, np.float32)
    arithmetic.get(frame_of(arithmetic, out, kind), other)
    if kind is not PayloadType.INT8:
        assert np.array_equal(out, other), "what was rounded once stays"


@pytest.mark.skipif(len(KINDS) < 2, reason="there is no helper in C")
@given(st.integers(1, 4), st.sampled_from(SIZES), st.sampled_from(NUMBERS), st.integers(0, 1000))
def test_c_and_python_make_the_same_bits(n_frames: int, size: int, kind: PayloadType, seed: int) -> None:
    size = size // 32 * 32
    random = np.random.default_rng(seed)
    contributions = [
        (random.standard_normal(size) * 10.0 ** random.uniform(-3, 3)).astype(np.float32) for _ in range(n_frames)
    ]
    sums = []
    for with_helper in (False, True):
        arithmetic = make_arithmetic(None, with_helper)
        frames = [frame_of(arithmetic, values, kind) for values in contributions]
        sums.append((added(arithmetic, frames, size), [bytes(frame.frame) for frame in frames]))
    (one, two) = sums
    assert np.array_equal(one[0][0].view(np.uint32), two[0][0].view(np.uint32)) and one[0][1] is two[0][1] is None
    assert one[1] == two[1]


def test_frames_are_added_in_their_order(arithmetic: Arithmetic) -> None:
    """Any other order would give other bits; a row can be used again with other content."""
    frames = [frame_of(arithmetic, array([value] * 32)) for value in (1e8, 1.0, -1e8)]
    row, out = arithmetic.row(frames, (3, 1, 2)), np.empty(32, np.float32)
    assert arithmetic.add(row, out) is None and not out.any()
    arithmetic.put(frames[1], KEY, PayloadType.F16, array([8.0] * 32))
    assert arithmetic.add(row, out) is None and (out == 8).all()
    assert arithmetic.add(arithmetic.row(frames[1:2], (1,)), out, is_more=True) is None and (out == 16).all()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_rank_that_spoils_a_sum_is_named(arithmetic: Arithmetic, size: int, bad: float) -> None:
    for culprits in ([0], [1], [2], [1, 2], [0, 2]):
        contributions = [np.ones(size, np.float32) for _ in range(3)]
        for number, culprit in enumerate(culprits):
            contributions[culprit][(size - 1) // (number + 1)] = bad
        frames = [frame_of(arithmetic, values) for values in contributions]
        assert added(arithmetic, frames, size)[1] == 10 + culprits[0]


@pytest.mark.parametrize("size", SIZES)
def test_a_sum_that_is_too_large_is_nobodys_fault(arithmetic: Arithmetic, size: int) -> None:
    contributions = [np.ones(size, np.float32) for _ in range(3)]
    for values in contributions[:2]:
        values[size - 1] = 3e38
    frames = [frame_of(arithmetic, values) for values in contributions]
    assert added(arithmetic, frames, size)[1] == NO_RANK


def test_whoever_comes_first_is_named_wherever_it_is(arithmetic: Arithmetic) -> None:
    """Two culprits, the later one in an earlier value; a sum that is too large before somebody's own fault."""
    size = 8224
    contributions = [np.ones(size, np.float32) for _ in range(3)]
    contributions[1][size - 1], contributions[2][0] = np.nan, np.nan
    frames = [frame_of(arithmetic, values) for values in contributions]
    assert added(arithmetic, frames, size)[1] == 11
    contributions = [np.ones(size, np.float32) for _ in range(3)]
    contributions[0][5] = contributions[1][5] = 3e38
    contributions[2][size - 1] = np.inf
    frames = [frame_of(arithmetic, values) for values in contributions]
    assert added(arithmetic, frames, size)[1] == NO_RANK


@pytest.mark.parametrize(
    ("kind", "n_bytes"), [(PayloadType.F32, 124), (PayloadType.F16, 62), (PayloadType.INT8, 32), (PayloadType.F16, 128)]
)
def test_a_contribution_of_another_size_is_refused(arithmetic: Arithmetic, kind: PayloadType, n_bytes: int) -> None:
    frames = [frame_of(arithmetic, array([1.0] * 32)) for _ in range(2)]
    frames[1].seal(KEY, kind, n_bytes)
    with pytest.raises(ProtocolError, match=f"rank 11 sent {n_bytes} bytes of {kind.name} for 32 values"):
        added(arithmetic, frames, 32)


@pytest.mark.parametrize("kind", [PayloadType.FAULT, PayloadType.BYTES, PayloadType.NONE])
def test_a_contribution_without_numbers_is_refused(arithmetic: Arithmetic, kind: PayloadType) -> None:
    frames = [frame_of(arithmetic, array([1.0] * 32)) for _ in range(2)]
    frames[0].seal(KEY, kind, 128)
    with pytest.raises(ProtocolError, match=f"a payload of type {kind.name} came where numbers were expected"):
        added(arithmetic, frames, 32)


def test_what_does_not_fit_is_not_put(arithmetic: Arithmetic) -> None:
    frame = PayloadBuffer(31)
    with pytest.raises(AssertionError, match="32 values do not fit a buffer for 31"):
        arithmetic.put(frame, KEY, PayloadType.F32, array([0.0] * 32))


def test_nothing_is_written_beyond_a_frame(arithmetic: Arithmetic) -> None:
    frame = PayloadBuffer(96)
    for kind in NUMBERS:
        frame.array[:] = 0xEE
        arithmetic.put(frame, KEY, kind, np.ones(64, np.float32))
        assert (frame.array[HEADER_BYTES + frame.n_payload_bytes :] == 0xEE).all()
        assert frame.payload_type is kind and bytes(frame.frame[:24]) == KEY
