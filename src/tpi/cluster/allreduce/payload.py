"""The arithmetic that all allreduces share: encoding, decoding, adding in rank order, checking for finiteness.

Knows no links and no threads; everything runs in the caller's. One ``PayloadBuffer`` per rank serves all of it.

Payloads are little-endian: F32 and F16 hold ``n_tokens * n_embd`` values, row by row. FAULT is 8 bytes: the rank
whose contribution is not finite as u32 (0xFFFFFFFF: all contributions are finite, their sum is not), then 0 as u32.
"""

import enum
import struct

import numpy as np
import numpy.typing as npt

from tpi.cluster.mesh.frames import HEADER_BYTES, FrameBuffer, PayloadType
from tpi.errors import NumericError, ProtocolError
from tpi.runtime.protocols import Float32Array, SumStep

F16_MAX = 65504.0
F32_MAX = float(np.finfo(np.float32).max)
_FEW_VALUES = 8192
"""Up to so many values numpy's dot product stays in the calling thread."""
NO_RANK = 0xFFFFFFFF
FAULT_BYTES = 8

_FAULT = struct.Struct("<II")
_ITEM_BYTES = {PayloadType.F32: 4, PayloadType.F16: 2}


class PayloadFormat(enum.Enum):
    """How values travel, fixed for an epoch. The value is the word that settings use."""

    F32 = "f32"
    F16 = "f16"
    """Halves the bytes; a payload with a value beyond 65504 travels as f32."""


class PayloadBuffer(FrameBuffer):
    """A frame buffer whose payload is an array of up to ``max_values`` numbers."""

    def __init__(self, max_values: int) -> None:
        super().__init__(max(max_values * 4, FAULT_BYTES))
        numbers = self.array[HEADER_BYTES : HEADER_BYTES + max_values * 4]
        self._as_f32: Float32Array = numbers.view("<f4")
        self._as_f16: npt.NDArray[np.float16] = numbers.view("<f2")
        self.max_values = max_values

    def encode(self, values: Float32Array, payload_format: PayloadFormat) -> PayloadType:
        """Write flat ``values`` as payload; says which type they took. Values that are not finite go as F32."""
        n = values.size
        assert n <= self.max_values, f"{n} values do not fit a buffer for {self.max_values}"
        if payload_format is PayloadFormat.F16 and _largest(values) <= F16_MAX:
            np.copyto(self._as_f16[:n], values, casting="same_kind")
            return PayloadType.F16
        np.copyto(self._as_f32[:n], values)
        return PayloadType.F32

    def decode(self, payload_type: PayloadType, out: Float32Array) -> None:
        """Write the payload's ``out.size`` values into flat ``out``."""
        np.copyto(out, self._numbers(payload_type, out.size))

    def add_to(self, payload_type: PayloadType, out: Float32Array) -> None:
        """Add the payload's ``out.size`` values, each first made float32, to flat ``out``."""
        np.add(out, self._numbers(payload_type, out.size), out=out)

    def is_finite(self, payload_type: PayloadType, n_values: int) -> bool:
        """Whether all values of the payload are finite; allocates, for when something is wrong already."""
        return bool(np.isfinite(self._numbers(payload_type, n_values)).all())

    def encode_fault(self, rank: int) -> None:
        """Write a FAULT payload (``FAULT_BYTES`` long) that blames ``rank``."""
        _FAULT.pack_into(self.payload, 0, rank, 0)

    def decode_fault(self) -> int:
        """The rank that a FAULT payload blames."""
        return int(_FAULT.unpack_from(self.payload)[0])

    def _numbers(self, payload_type: PayloadType, n_values: int) -> npt.NDArray[np.float16] | Float32Array:
        return (self._as_f16 if payload_type is PayloadType.F16 else self._as_f32)[:n_values]


class RankOrderSum:
    """Adds contributions, which arrive in rank order, into ``out`` and remembers the first that is not finite.

    A sum that is not finite never becomes finite again, so watching the running sum finds every bad contribution
    without a second look at its bytes.
    """

    def __init__(self, out: Float32Array) -> None:
        self._out = out
        self._empty = True
        self.faulty_rank: int | None = None
        """None: everything is finite so far. ``NO_RANK``: a sum of finite values is not."""

    def add(self, rank: int, buffer: PayloadBuffer, payload_type: PayloadType) -> None:
        """Add the contribution of ``rank``, which lies in ``buffer``; ignored after a fault."""
        if self.faulty_rank is not None:
            return
        if self._empty:
            self._empty = False
            buffer.decode(payload_type, self._out)
        else:
            with np.errstate(over="ignore", invalid="ignore"):
                buffer.add_to(payload_type, self._out)
        if not is_finite(self._out):
            self.faulty_rank = NO_RANK if buffer.is_finite(payload_type, self._out.size) else rank


def is_finite(values: Float32Array) -> bool:
    """Whether all of flat ``values`` are finite; allocates nothing."""
    # The sum of squares is the fastest look at a token's values; where it overflows, a closer look decides.
    if values.size <= _FEW_VALUES:
        with np.errstate(over="ignore", invalid="ignore"):
            if float(values.dot(values)) <= F32_MAX:
                return True
    return bool(_largest(values) <= F32_MAX)


def encoded_bytes(payload_type: PayloadType, n_values: int) -> int:
    """Length of a payload of ``n_values`` numbers; raises ProtocolError for a type that holds no numbers."""
    try:
        return _ITEM_BYTES[payload_type] * n_values
    except KeyError:
        raise ProtocolError(f"a payload of type {payload_type.name} came where numbers were expected") from None


def check_sum(step: SumStep, rank: int, partial: Float32Array | None, out: Float32Array) -> None:
    """Assert what ``Allreduce.sum`` demands of its caller."""
    assert step.contributors, "a sum needs a contributor"
    assert (partial is not None) == (rank in step.contributors), "who contributes must give a partial result"
    assert out.dtype == np.float32 and out.flags.c_contiguous, "out must be C-contiguous float32"
    if partial is not None:
        assert partial.dtype == np.float32 and partial.flags.c_contiguous, "partial must be C-contiguous float32"
        assert partial.shape == out.shape, "partial and out must have the same shape"


def copy_alone(step: SumStep, rank: int, partial: Float32Array, out: Float32Array) -> None:
    """The sum in a cluster of one rank: a copy without any encoding."""
    if not is_finite(partial.reshape(-1)):
        raise fault_error(step, rank)
    if partial is not out:
        np.copyto(out, partial)


def fault_error(step: SumStep, faulty_rank: int) -> NumericError:
    """What every rank raises when a sum does not exist."""
    where = f"block {step.block} of pass {step.pass_id}"
    if faulty_rank == NO_RANK:
        return NumericError(f"the sum over all ranks for {where} is too large for float32")
    return NumericError(
        f"rank {faulty_rank} computed values that are not finite in {where}: check its memory and its model file"
    )


def _largest(values: Float32Array) -> np.float32:
    """The largest magnitude; not a number when any value is not."""
    high: np.float32 = np.maximum.reduce(values)
    low: np.float32 = np.minimum.reduce(values)
    largest: np.float32 = np.maximum(high, -low)
    return largest
