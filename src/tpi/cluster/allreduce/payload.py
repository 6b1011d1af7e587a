"""What travels in sums: formats, frames of numbers, faults; and what all allreduces agree upon.

Converts and adds nothing (``arithmetic``); knows no links and no threads.

Payloads are little-endian: F32 and F16 hold ``n`` values, row by row; INT8 holds blocks of 32 values, each an F16 scale
and 32 signed bytes. FAULT is 8 bytes: the rank whose contribution is not finite as u32 (0xFFFFFFFF: all contributions
are finite, their sum is not), then 0 as u32. NONE is empty: nobody has contributed yet.
"""

import enum
import struct
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tpi.cluster.mesh.frames import HEADER_BYTES, FrameBuffer, PayloadType
from tpi.errors import NumericError, ProtocolError
from tpi.runtime.ggml.numbers import INT8_BLOCK_BYTES, INT8_BLOCK_VALUES, Numbers
from tpi.runtime.protocols import Float32Array, SumStep

F16_MAX = 65504.0
F32_MAX = float(np.finfo(np.float32).max)
INT8_MAX = 127 * F16_MAX
NO_RANK = 0xFFFFFFFF
FAULT_BYTES = 8

_FAULT = struct.Struct("<II")


class PayloadFormat(enum.Enum):
    """How values travel, fixed for an epoch. The value is the word that settings use."""

    F32 = "f32"
    F16 = "f16"
    """Halves the bytes; a payload with a value beyond 65504 travels as f32."""
    INT8 = "int8"
    """A quarter of the bytes, and a little; values beyond 127 times 65504 travel as f32."""


def encoded_bytes(payload_type: PayloadType, n_values: int) -> int:
    """Length of a payload of ``n_values`` numbers; raises ProtocolError for a type that holds no numbers."""
    match payload_type:
        case PayloadType.F32:
            return 4 * n_values
        case PayloadType.F16:
            return 2 * n_values
        case PayloadType.INT8:
            return -(-n_values // INT8_BLOCK_VALUES) * INT8_BLOCK_BYTES
    raise ProtocolError(f"a payload of type {payload_type.name} came where numbers were expected")


class PayloadBuffer(FrameBuffer):
    """A frame buffer whose payload is an array of up to ``max_values`` numbers, in any type."""

    def __init__(self, max_values: int, memory: npt.NDArray[np.uint8] | None = None) -> None:
        """``memory``: of somebody else, for a frame that may have less room than float32 needs."""
        capacity_bytes = max(max_values * 4, FAULT_BYTES) if memory is None else memory.size - HEADER_BYTES
        super().__init__(capacity_bytes, memory)
        self.max_values = max_values
        self.numbers = Numbers(self.array[HEADER_BYTES:])

    def put_nothing(self, key: bytes) -> None:
        """Makes a frame that says that nobody has contributed yet."""
        self.seal(key, PayloadType.NONE, 0)

    def put_fault(self, key: bytes, rank: int) -> None:
        """Makes a frame that blames ``rank``."""
        _FAULT.pack_into(self.payload, 0, rank, 0)
        self.seal(key, PayloadType.FAULT, FAULT_BYTES)

    @property
    def is_nothing(self) -> bool:
        return self.payload_type is PayloadType.NONE

    @property
    def fault(self) -> int | None:
        """The rank that the frame blames, if it does."""
        if self.payload_type is not PayloadType.FAULT or self.n_payload_bytes != FAULT_BYTES:
            return None
        return int(_FAULT.unpack_from(self.payload)[0])

    def check(self, n_values: int, sender: str) -> None:
        """Raises:
        ProtocolError: the frame, which ``sender`` sent, does not hold so many numbers.
        """
        if self.n_payload_bytes != encoded_bytes(self.payload_type, n_values):
            raise ProtocolError(
                f"{sender} sent {self.n_payload_bytes} bytes of {self.payload_type.name} for {n_values} values"
            )


def slices_of(n_values: int, n_slices: int) -> list[slice]:
    """Cuts ``n_values`` into runs of about equal length between blocks of 32 values; the last ones may be empty."""
    n_blocks = -(-n_values // INT8_BLOCK_VALUES)
    stops = [min(n_values, -(-n_blocks * number // n_slices) * INT8_BLOCK_VALUES) for number in range(n_slices + 1)]
    return [slice(start, stop) for start, stop in pairwise(stops)]


def check_sum(step: SumStep, rank: int, partial: Float32Array | None, out: Float32Array | None) -> None:
    """Asserts what ``Allreduce.start`` demands of its caller."""
    flow = step.flow
    assert flow.contributors, "a sum needs a contributor"
    assert (partial is not None) == (rank in flow.contributors), "who contributes must give a partial result"
    assert (out is not None) == (rank in flow.receivers), "who receives must say where"
    for values in (partial, out):
        assert values is None or (values.dtype == np.float32 and values.flags.c_contiguous), "C-contiguous float32"
    assert partial is None or out is None or partial.shape == out.shape, "partial and out must have the same shape"


def raise_fault(step: SumStep, faulty_rank: int | None) -> None:
    """Raises:
    NumericError: what every receiver raises when a sum does not exist; nothing if no rank is to blame.
    """
    if faulty_rank is None:
        return
    if faulty_rank == NO_RANK:
        raise NumericError(f"the sum over all ranks for {step} is too large for float32")
    raise NumericError(
        f"rank {faulty_rank} computed values that are not finite in {step}: check its memory and its model file"
    )


def staggered(ranks: Sequence[int], after: int) -> list[int]:
    """``ranks``, the first one above ``after`` first, without it: so that not all send to the same one at once."""
    return [rank for rank in ranks if rank > after] + [rank for rank in ranks if rank < after]
