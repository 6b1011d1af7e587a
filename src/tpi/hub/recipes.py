"""How values become the bytes of a GGUF type. Data; any thread."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tpi.gguf.reader import ReadBytes
from tpi.hub.values import Array, Values, to_f32

_Bytes = npt.NDArray[np.uint8]
_Q8_BLOCK, _MXFP4_BLOCK = 32, 32


@dataclass(frozen=True)
class Encoded:
    """``source`` as ``type_name``: F32, F16, BF16 or Q8_0. Satisfies ``gguf.reader.Recipe``."""

    source: Values
    type_name: str

    def make(self, read: ReadBytes, start: int, stop: int) -> _Bytes:
        found = self.source.rows(read, start, stop)
        if self.source.kind != self.type_name:
            found = _ENCODERS[self.type_name](to_f32(self.source.kind, found))
        return np.ascontiguousarray(found).view(np.uint8).reshape(stop - start, -1)


@dataclass(frozen=True)
class Mxfp4:
    """Blocks of 32 values of 4 bits: ``blocks`` has 16 bytes of each, two values side by side in a byte, ``scales`` a
    byte. ggml wants the scale, then bytes with a value of the first half and one of the second. Satisfies
    ``gguf.reader.Recipe``."""

    blocks: Values
    scales: Values

    def make(self, read: ReadBytes, start: int, stop: int) -> _Bytes:
        n_blocks = self.scales.n_columns
        pairs = self.blocks.rows(read, start, stop).reshape(stop - start, n_blocks, 16)
        values = np.stack((pairs & 15, pairs >> 4), axis=-1).reshape(stop - start, n_blocks, _MXFP4_BLOCK)
        found = np.empty((stop - start, n_blocks, 17), np.uint8)
        found[:, :, 0] = self.scales.rows(read, start, stop)
        found[:, :, 1:] = values[:, :, :16] | values[:, :, 16:] << 4
        return found.reshape(stop - start, -1)


def _to_bf16(values: Array) -> Array:
    """To the nearest, of two equally near to the even one; what is not a number stays that."""
    bits = values.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), (bits >> 16 | 64).astype(np.uint16), rounded)


def _to_q8_0(values: Array) -> Array:
    """Blocks of 32: a scale in 16 bits, and integers, as ggml's reference rounds them."""
    blocks = values.reshape(-1, _Q8_BLOCK)
    scales = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(scales == 0, np.float32(0), np.float32(1) / scales)
    scaled = blocks * inverse
    whole = np.trunc(scaled)
    whole += np.trunc(2 * (scaled - whole))  # halves away from zero
    found = np.empty((len(blocks), 2 + _Q8_BLOCK), np.uint8)
    found[:, :2] = scales.astype("<f2").view(np.uint8)
    found[:, 2:] = whole.astype(np.int8).view(np.uint8)
    return found.reshape(len(values), -1)


def _to_f16(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype("<f2")


_ENCODERS = {"F32": lambda values: values, "F16": _to_f16, "BF16": _to_bf16, "Q8_0": _to_q8_0}
