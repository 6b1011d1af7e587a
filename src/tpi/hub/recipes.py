"""How values become the bytes of a GGUF type. Data; any thread."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tpi.gguf.reader import ReadBytes
from tpi.hub.values import Array, Values, to_f32

_Bytes = npt.NDArray[np.uint8]
_MXFP4_BLOCK = 32


@dataclass(frozen=True)
class Encoded:
    """``source`` as ``type_name``: F32, F16 or BF16. Satisfies ``gguf.reader.Recipe``."""

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
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    found = bits >> 16
    found &= 1
    found += 0x7FFF
    found += bits
    found >>= 16
    if (lost := np.isnan(values)).any():
        found[lost] = bits[lost] >> 16 | 64
    return found.astype(np.uint16)


def _to_f16(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return values.astype("<f2")


_ENCODERS = {"F32": lambda values: values, "F16": _to_f16, "BF16": _to_bf16}
