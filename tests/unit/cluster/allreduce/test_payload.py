"""What travels in sums: frames of numbers, faults, nothing yet; and where values are cut."""

import itertools
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.allreduce.payload import (
    FAULT_BYTES,
    NO_RANK,
    PayloadBuffer,
    PayloadFormat,
    check_sum,
    encoded_bytes,
    raise_fault,
    slices_of,
    staggered,
)
from tpi.cluster.mesh.frames import HEADER_BYTES, FrameTag, PayloadType, Phase
from tpi.errors import NumericError, ProtocolError
from tpi.model.flow import Flow
from tpi.runtime.protocols import Float32Array, SumStep

KEY = FrameTag(1, 2, Phase.PARTIAL).key(1)


@given(st.integers(0, 100_000), st.integers(1, 64))
def test_slices_cover_all_values_once_between_blocks(n_values: int, n_slices: int) -> None:
    slices = slices_of(n_values, n_slices)
    assert len(slices) == n_slices and slices[0].start == 0 and slices[-1].stop == n_values
    assert all(one.stop == following.start for one, following in itertools.pairwise(slices))
    assert all(one.start % 32 == 0 or one.start == n_values for one in slices)
    sizes = [one.stop - one.start for one in slices]
    assert min(sizes) >= 0 and max(sizes) - min(sizes) <= 32 + 31
    assert max(sizes) == sizes[0] or n_values % 32, "room for the first slice is room for every other"
    assert max(sizes) <= sizes[0]


@pytest.mark.parametrize(
    ("n_values", "n_slices", "stops"),
    [(96, 3, [32, 64, 96]), (96, 2, [64, 96]), (64, 3, [32, 64, 64]), (33, 2, [32, 33]), (0, 2, [0, 0])],
)
def test_where_values_are_cut(n_values: int, n_slices: int, stops: list[int]) -> None:
    assert [one.stop for one in slices_of(n_values, n_slices)] == stops


@pytest.mark.parametrize(
    ("kind", "n_values", "n_bytes"),
    [
        (PayloadType.F32, 33, 132),
        (PayloadType.F16, 33, 66),
        (PayloadType.INT8, 64, 68),
        (PayloadType.INT8, 33, 68),
        (PayloadType.INT8, 0, 0),
    ],
)
def test_how_long_a_payload_is(kind: PayloadType, n_values: int, n_bytes: int) -> None:
    assert encoded_bytes(kind, n_values) == n_bytes


@pytest.mark.parametrize("kind", [PayloadType.FAULT, PayloadType.BYTES, PayloadType.NONE])
def test_what_holds_no_numbers(kind: PayloadType) -> None:
    with pytest.raises(ProtocolError, match=f"a payload of type {kind.name} came where numbers were expected"):
        encoded_bytes(kind, 1)
    buffer = PayloadBuffer(8)
    buffer.seal(KEY, kind, 4)
    with pytest.raises(ProtocolError, match="where numbers were expected"):
        buffer.check(1, "rank 3")


def test_a_frame_of_too_few_or_too_many_numbers() -> None:
    buffer = PayloadBuffer(64)
    buffer.seal(KEY, PayloadType.F16, 64)
    buffer.check(32, "the attic")
    for n_values in (31, 33):
        with pytest.raises(ProtocolError, match=f"the attic sent 64 bytes of F16 for {n_values} values"):
            buffer.check(n_values, "the attic")


def test_golden_bytes_of_faults_and_of_nothing() -> None:
    buffer = PayloadBuffer(0)
    assert buffer.capacity_bytes == FAULT_BYTES, "a fault fits where no number does"
    buffer.put_fault(KEY, 7)
    assert bytes(buffer.frame) == KEY + struct.pack("<IB3x", 8, PayloadType.FAULT) + b"\7\0\0\0\0\0\0\0"
    assert (buffer.fault, buffer.is_nothing) == (7, False)
    buffer.put_fault(KEY, NO_RANK)
    assert buffer.fault == NO_RANK
    buffer.put_nothing(KEY)
    assert bytes(buffer.frame[:HEADER_BYTES]) == KEY + struct.pack("<IB3x", 0, PayloadType.NONE)
    assert buffer.fault is None and buffer.is_nothing


def test_a_fault_of_another_length_is_none() -> None:
    buffer = PayloadBuffer(8)
    buffer.put_fault(KEY, 7)
    buffer.seal(KEY, PayloadType.FAULT, 4)
    assert buffer.fault is None


def step(contributors: tuple[int, ...] = (0, 1), receivers: tuple[int, ...] = (0, 1)) -> SumStep:
    return SumStep(5, Flow(3, contributors, receivers, False))


def test_who_is_to_blame_is_named() -> None:
    raise_fault(step(), None)
    with pytest.raises(NumericError, match=r"^rank 2 computed values that are not finite in block 3 of pass 5"):
        raise_fault(step(), 2)
    with pytest.raises(NumericError, match=r"^the sum over all ranks for block 3 of pass 5 is too large for float32"):
        raise_fault(step(), NO_RANK)


VALUES = np.zeros((2, 32), np.float32)


@pytest.mark.parametrize(
    ("step", "rank", "partial", "out"),
    [
        (step(()), 0, None, VALUES),
        (step(), 0, None, VALUES),
        (step(), 0, VALUES, None),
        (step((1,)), 0, VALUES, VALUES),
        (step((0, 1), (1,)), 0, VALUES, VALUES),
        (step(), 0, VALUES, np.zeros((2, 64), np.float32)),
        (step(), 0, VALUES.astype(np.float64), VALUES),
        (step(), 0, np.zeros((4, 32), np.float32)[::2], VALUES),
    ],
)
def test_sums_that_make_no_sense(
    step: SumStep, rank: int, partial: Float32Array | None, out: Float32Array | None
) -> None:
    with pytest.raises(AssertionError):
        check_sum(step, rank, partial, out)


def test_sums_that_make_sense() -> None:
    check_sum(step(), 0, VALUES, VALUES)
    check_sum(step((1,)), 0, None, VALUES)
    check_sum(step((0, 1), (1,)), 0, VALUES, None)


def test_not_all_send_to_the_same_one_first() -> None:
    assert [staggered(range(4), rank) for rank in range(4)] == [[1, 2, 3], [2, 3, 0], [3, 0, 1], [0, 1, 2]]
    assert staggered([0, 5, 9], 7) == [9, 0, 5]


def test_formats_are_the_words_of_settings() -> None:
    assert [entry.value for entry in PayloadFormat] == ["f32", "f16", "int8"]
