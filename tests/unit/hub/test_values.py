"""Compositions of rows against numpy on whole arrays, in runs of all lengths; types against the gguf package."""

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf.quants import quantize

from tpi.hub.recipes import Encoded, Mxfp4
from tpi.hub.values import Axes, Changed, Columns, Rows, Scaled, Stacked, Stored, Transposed, Values, to_f32

Array = npt.NDArray[Any]
RANDOM = np.random.default_rng(1)


class Memory:
    """A file in memory, which counts what is read of it."""

    def __init__(self, *arrays: Array) -> None:
        self._data = [array.tobytes() for array in arrays]
        self.n_read = 0

    def read(self, file: int, offset: int, out: memoryview) -> None:
        assert offset >= 0 and offset + len(out) <= len(self._data[file])
        out[:] = self._data[file][offset : offset + len(out)]
        self.n_read += len(out)


def _check(values: Values, whole: Array, memory: Memory) -> None:
    assert (values.n_rows, values.n_columns) == whole.shape
    for start in range(0, values.n_rows + 1, 5):
        for stop in (start, start + 1, start + 4, values.n_rows):
            if start <= stop <= values.n_rows:
                np.testing.assert_array_equal(values.rows(memory.read, start, stop), whole[start:stop])


F32 = RANDOM.standard_normal((24, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("make", "whole"),
    [
        (lambda stored: Rows(stored, Axes(((3, 8), (4, 1), (2, 4)))), F32.reshape(3, 2, 4, 6).swapaxes(1, 2)),
        (lambda stored: Rows(stored, Axes(((4, 6), (3, 2)), 1)), F32[1::2]),
        (lambda stored: Rows(stored, Axes(((2, 12), (6, 1)), 6)), F32.reshape(2, 12, 6)[:, 6:]),
        (lambda stored: Rows(stored, Axes(((24, -1),), 23)), F32[::-1]),
        (lambda stored: Columns(stored, Axes(((2, 1), (3, 2)))), F32[:, [0, 2, 4, 1, 3, 5]]),
        (lambda stored: Stacked((stored, stored)), np.concatenate((F32, F32))),
        (lambda stored: Transposed(stored, 8), F32.reshape(3, 8, 6).swapaxes(1, 2).reshape(18, 8)),
        (lambda stored: Changed(stored, "plus 1"), F32 + 1),
        (lambda stored: Changed(stored, "minus exp"), -np.exp(F32.astype(float)).astype(np.float32)),
    ],
)
def test_every_run_of_rows_is_that_of_the_whole(make: Callable[[Stored], Values], whole: Array) -> None:
    _check(make(Stored("F32", 24, 6, 0, 0)), whole.reshape(-1, whole.shape[-1]), Memory(F32))


@pytest.mark.parametrize("block", [(3, 4), (1, 6), (12, 6), (5, 1)])
def test_scales_of_blocks_rows_and_matrices(block: tuple[int, int]) -> None:
    height, width = block
    down, across = -(-12 // height), -(-6 // width)
    scales = RANDOM.uniform(1, 2, (2 * down, across)).astype(np.float32)
    spread = np.repeat(np.repeat(scales.reshape(2, down, across), height, 1)[:, :12], width, 2)[:, :, :6]
    values = Scaled(Stored("F32", 24, 6, 0, 0), Stored("F32", 2 * down, across, 1, 0), 12, block)
    _check(values, F32 * spread.reshape(24, 6), Memory(F32, scales))


def test_a_few_rows_of_many_are_not_read_with_all_others() -> None:
    data = RANDOM.standard_normal((4096, 8)).astype(np.float32)
    memory = Memory(data)
    values = Rows(Stored("F32", 4096, 8, 0, 0), Axes(((64, 1), (64, 64))))
    whole = data.reshape(64, 64, 8).swapaxes(0, 1).reshape(4096, 8)
    np.testing.assert_array_equal(values.rows(memory.read, 100, 164), whole[100:164])
    assert memory.n_read <= 64 * 32


def test_floats_of_8_bits() -> None:
    bits = np.arange(256, dtype=np.uint8)
    found = to_f32("F8_E4M3", bits)
    assert found[[0, 1, 8, 0x38, 0x7E, 0x80, 0xB8]].tolist() == [0, 2**-9, 2**-6, 1, 448, 0, -1]
    assert np.isnan(found[[0x7F, 0xFF]]).all() and np.isfinite(found).sum() == 254
    assert to_f32("F8_E5M2", np.array([0x3C, 0x7B], np.uint8)).tolist() == [1, 57344]
    assert to_f32("F8_E8M0", np.array([127, 120], np.uint8)).tolist() == [1, 2**-7]


@pytest.mark.parametrize("type_name", ["F32", "F16", "BF16"])
def test_types_are_those_of_the_gguf_package(type_name: str) -> None:
    values = RANDOM.standard_normal((50, 64)).astype(np.float32)
    values[0, :4] = 0, 1e-38, 65504, np.nan
    expected: Any = quantize(values, gguf.GGMLQuantizationType[type_name])
    made = Encoded(Stored("F32", 50, 64, 0, 0), type_name).make(Memory(values).read, 0, 50)
    np.testing.assert_array_equal(made, expected.view(np.uint8).reshape(50, -1))


def test_values_of_4_bits_are_those_that_were_stored() -> None:
    blocks = RANDOM.integers(0, 256, (6, 2 * 16)).astype(np.uint8)
    scales = RANDOM.integers(110, 130, (6, 2)).astype(np.uint8)
    made = Mxfp4(Stored("U8", 6, 32, 0, 0), Stored("U8", 6, 2, 1, 0)).make(Memory(blocks, scales).read, 1, 5)
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    pairs = np.stack((blocks & 15, blocks >> 4), axis=-1).reshape(6, 64)
    expected = numbers[pairs] * np.repeat(2.0 ** (scales.astype(int) - 127), 32, axis=1)
    found = gguf.quants.dequantize(made, gguf.GGMLQuantizationType.MXFP4)
    np.testing.assert_array_equal(found, expected[1:5].astype(np.float32))
