"""Numbers in the formats in which they travel, against numpy and against arithmetic that is written out."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.runtime.ggml.numbers import INT8_BLOCK_BYTES, INT8_BLOCK_VALUES, Numbers

Values = npt.NDArray[np.float32]


def through_f16(values: Values) -> tuple[npt.NDArray[np.uint16], Values]:
    """The 16 bits of each value, and what they are read as."""
    memory, out = np.zeros(2 * values.size, np.uint8), np.empty_like(values)
    numbers = Numbers(memory)
    numbers.write_f16(values)
    numbers.read_f16(out)
    return memory.view(np.uint16), out


def through_int8(values: Values) -> tuple[npt.NDArray[np.uint8], Values]:
    """The bytes of the blocks, and what they are read as."""
    memory, out = np.zeros(values.size // INT8_BLOCK_VALUES * INT8_BLOCK_BYTES, np.uint8), np.empty_like(values)
    numbers = Numbers(memory)
    numbers.write_int8(values)
    numbers.read_int8(out)
    return memory, out


def test_every_f16_comes_back() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    finite = np.isfinite(bits.view(np.float16))
    values = bits[finite].view(np.float16).astype(np.float32)
    written, read = through_f16(values)
    assert np.array_equal(written, bits[finite])
    assert np.array_equal(read.view(np.uint32), values.view(np.uint32)), "-0.0 and subnormals, too"


def test_ties_go_to_even_and_neighbours_to_the_nearest() -> None:
    """Half way between every two neighbours, subnormal ones included, and one float32 to either side."""
    bits = np.arange(0x7C00, dtype=np.uint16)
    exact = bits.view(np.float16).astype(np.float64)
    middle = ((exact[:-1] + exact[1:]) / 2).astype(np.float32)
    assert np.array_equal(middle.astype(np.float64) * 2, exact[:-1] + exact[1:]), "the middle is a float32"
    for values in (middle, np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(1e9))):
        for sign in (np.float32(1), np.float32(-1)):
            written, _ = through_f16(np.ascontiguousarray(values * sign))
            assert np.array_equal(written, (values * sign).astype(np.float16).view(np.uint16))
    written, _ = through_f16(middle)
    assert not (written & 1).any()


@given(st.lists(st.floats(-65504, 65504, width=32), min_size=1, max_size=70))
def test_f16_is_numpys(values: list[float]) -> None:
    """Any number of values: the kernels take eight and four at once, and the rest one by one."""
    array = np.array(values, np.float32)
    written, read = through_f16(array)
    assert np.array_equal(written, array.astype(np.float16).view(np.uint16))
    assert np.array_equal(read, array.astype(np.float16).astype(np.float32))


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (65504.0, 0x7BFF),
        (65519.996, 0x7BFF),
        (65520.0, 0x7C00),
        (-65520.0, 0xFC00),
        (1e30, 0x7C00),
        (np.inf, 0x7C00),
        (2.0**-25, 0x0000),
        (2.0**-24, 0x0001),
        (-(2.0**-26), 0x8000),
        (1e-40, 0x0000),
    ],
)
def test_f16_at_its_limits(value: float, bits: int) -> None:
    for n in (1, 8, 9):
        written, _ = through_f16(np.full(n, value, np.float32))
        assert written.tolist() == [bits] * n


def test_what_is_no_number_stays_none() -> None:
    _, read = through_f16(np.full(9, np.nan, np.float32))
    assert np.isnan(read).all()


blocks = st.lists(
    st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=32, max_size=32), min_size=1, max_size=4
).map(lambda values: np.array(values, np.float32).reshape(-1))


@given(blocks)
def test_int8_is_within_half_a_step(values: Values) -> None:
    memory, read = through_int8(values)
    for number in range(values.size // 32):
        block, cut = memory[34 * number : 34 * number + 34], slice(32 * number, 32 * number + 32)
        scale = float(block[:2].view(np.float16)[0])
        largest = float(np.abs(values[cut]).max())
        step = largest / 127
        assert scale == pytest.approx(step, rel=2**-11, abs=2.0**-25), "the largest magnitude ÷ 127, as f16"
        whole = block[2:].view(np.int8).astype(np.float32)
        # Of values below the least number that has a reciprocal, the integers are anything, and the scale is 0.
        assert np.array_equal(read[cut], whole * np.float32(scale)) and (np.abs(whole).max() <= 127 or scale == 0)
        # Rounded to whole steps, which the scale's own rounding stretches a little.
        assert (np.abs(read[cut] - values[cut]) <= step * (0.5 + 1e-3) + np.abs(values[cut]) * 2**-10 + 2.0**-18).all()


def test_int8_of_zeros_and_of_one_value() -> None:
    values = np.zeros(64, np.float32)
    assert np.array_equal(through_int8(values)[1], values)
    values[40] = -3.0
    memory, read = through_int8(values)
    assert memory[34 + 2 :].view(np.int8).tolist() == [0] * 8 + [-127] + [0] * 23
    assert read[40] == pytest.approx(-3.0, rel=1e-3) and np.count_nonzero(read) == 1


def test_int8_at_its_limits() -> None:
    """A scale is an f16: up to 127 times its largest, and at least its smallest."""
    largest = np.float32(127 * 65504.0)
    assert np.isfinite(through_int8(np.full(32, largest))[1]).all()
    assert not np.isfinite(through_int8(np.full(32, largest * np.float32(1.001)))[1]).any()
    assert np.array_equal(through_int8(np.full(32, 1e-7, np.float32))[1], np.zeros(32, np.float32))


def test_a_run_of_values_is_read_from_anywhere() -> None:
    values = np.random.default_rng(2).standard_normal(256).astype(np.float32)
    memory = np.zeros(4 * values.size, np.uint8)
    numbers = Numbers(memory)
    out = np.empty(32, np.float32)
    numbers.write_f32(values)
    numbers.read_f32(out, 7)
    assert np.array_equal(out, values[7:39])
    numbers.write_f16(values)
    numbers.read_f16(out, 9)
    assert np.array_equal(out, values[9:41].astype(np.float16))
    numbers.write_int8(values)
    numbers.read_int8(out, 64)
    assert np.array_equal(out, through_int8(values)[1][64:96])


@pytest.mark.parametrize("form", ["f32", "f16", "int8"])
def test_nothing_is_written_beyond_the_memory(form: str) -> None:
    numbers = Numbers(np.zeros(63, np.uint8))
    with pytest.raises(AssertionError):
        getattr(numbers, f"write_{form}")(np.zeros(64, np.float32))


def test_int8_is_of_whole_blocks() -> None:
    with pytest.raises(AssertionError):
        Numbers(np.zeros(1000, np.uint8)).write_int8(np.zeros(33, np.float32))
