"""Numbers in the formats in which they travel: float32, float16, and blocks of 32 signed bytes with a float16 scale
(ggml's Q8_0), converted by the kernels' row conversions. Any thread, for memory of its own.

float16 is rounded to nearest, ties to even, as IEEE 754 says; the scale of a block is its largest magnitude ÷ 127.
"""

import ctypes

import numpy as np
import numpy.typing as npt

from tpi.gguf.types import TYPES_BY_NAME
from tpi.runtime.ggml.binding import ggml
from tpi.runtime.protocols import Float32Array

INT8_BLOCK_VALUES = 32
INT8_BLOCK_BYTES = 34
_Q8_0 = TYPES_BY_NAME["Q8_0"]


def conversion_addresses() -> tuple[int | None, ...]:
    """Where the kernels' conversions are, for C: float32 to float16 and back, float32 to Q8_0 and back, each of (from,
    to, number of values)."""
    lib = ggml()
    functions = (
        lib.cpu.ggml_cpu_fp32_to_fp16,
        lib.cpu.ggml_cpu_fp16_to_fp32,
        lib.cpu.ggml_get_type_traits_cpu(_Q8_0.id).contents.from_float,
        lib.base.ggml_get_type_traits(_Q8_0.id).contents.to_float,
    )
    return tuple(ctypes.cast(function, ctypes.c_void_p).value for function in functions)


class Numbers:
    """Conversions into and out of a run of bytes, which belongs to the caller and outlives this."""

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        """``memory`` is contiguous."""
        assert memory.flags.c_contiguous
        self._address: int = memory.ctypes.data
        self._memory = memory
        lib = ggml()
        self._to_f16, self._from_f16 = lib.cpu.ggml_cpu_fp32_to_fp16, lib.cpu.ggml_cpu_fp16_to_fp32
        self._to_int8 = lib.cpu.ggml_get_type_traits_cpu(_Q8_0.id).contents.from_float
        self._from_int8 = lib.base.ggml_get_type_traits(_Q8_0.id).contents.to_float

    def write_f32(self, values: Float32Array) -> None:
        """Writes flat ``values`` as they are."""
        assert values.nbytes <= self._memory.nbytes
        ctypes.memmove(self._address, values.ctypes.data, values.nbytes)

    def write_f16(self, values: Float32Array) -> None:
        """Writes flat ``values`` in 16 bits; beyond 65504 they become infinite."""
        assert 2 * values.size <= self._memory.nbytes
        self._to_f16(values.ctypes.data, self._address, values.size)

    def write_int8(self, values: Float32Array) -> None:
        """Writes flat ``values``, whole blocks of 32, as scales and bytes."""
        assert values.size % INT8_BLOCK_VALUES == 0 and values.size * 17 // 16 <= self._memory.nbytes
        self._to_int8(values.ctypes.data, self._address, values.size)

    def read_f32(self, out: Float32Array, first: int = 0) -> None:
        """Reads as many values as flat ``out`` has, from number ``first`` on."""
        ctypes.memmove(out.ctypes.data, self._address + 4 * first, out.nbytes)

    def read_f16(self, out: Float32Array, first: int = 0) -> None:
        """As ``read_f32``, of 16 bits each."""
        self._from_f16(self._address + 2 * first, out.ctypes.data, out.size)

    def read_int8(self, out: Float32Array, first: int = 0) -> None:
        """As ``read_f32``, of scales and bytes; ``first`` and ``out`` are whole blocks."""
        self._from_int8(self._address + first * 17 // 16, out.ctypes.data, out.size)
