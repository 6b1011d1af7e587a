"""The arithmetic that all allreduces share: encoding, decoding, adding in order, checking for finiteness.

``Arithmetic`` does it with numpy and the kernels' conversions, ``NativeArithmetic`` in C (``native.exchange``), to the
same bits. Knows no links and no threads; everything runs in the caller's.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tpi.cluster.allreduce.payload import (
    F16_MAX,
    F32_MAX,
    INT8_MAX,
    NO_RANK,
    PayloadBuffer,
    PayloadFormat,
    encoded_bytes,
)
from tpi.cluster.mesh.frames import PayloadType
from tpi.errors import ProtocolError
from tpi.native.exchange import Conversions, Helper, load_helper
from tpi.runtime.ggml.numbers import conversion_addresses
from tpi.runtime.protocols import Float32Array

_FEW_VALUES = 8192
"""Up to so many values numpy's dot product stays in the calling thread; and they stay in the nearest cache."""

_TYPES = {
    PayloadFormat.F32: (PayloadType.F32, F32_MAX),
    PayloadFormat.F16: (PayloadType.F16, F16_MAX),
    PayloadFormat.INT8: (PayloadType.INT8, INT8_MAX),
}


def largest_of(payload_format: PayloadFormat) -> tuple[PayloadType, float]:
    """In what type values of a format travel, and the largest magnitude that it can hold."""
    return _TYPES[payload_format]


class Row:
    """Contributions in the order in which they are added, each with its rank. Made by ``Arithmetic.row``, to be used
    again and again."""

    def __init__(self, frames: Sequence[PayloadBuffer], ranks: Sequence[int]) -> None:
        self.frames, self.ranks = tuple(frames), tuple(ranks)


class Arithmetic:
    """By numpy. Arrays are flat float32."""

    def __init__(self) -> None:
        self._scratch = np.empty(_FEW_VALUES, np.float32)

    def row(self, frames: Sequence[PayloadBuffer], ranks: Sequence[int]) -> Row:
        """Contributions to ``add``."""
        return Row(frames, ranks)

    def choose_type(self, values: Float32Array, payload_format: PayloadFormat) -> PayloadType:
        """How ``values`` travel: in the format, or as F32 where it cannot hold them. Values that are not finite, too,
        so that whoever receives them sees whose they are."""
        payload_type, largest = _TYPES[payload_format]
        return payload_type if self.are_within(values, largest) else PayloadType.F32

    def is_finite(self, values: Float32Array) -> bool:
        """Whether all of ``values`` are finite."""
        return self.are_within(values, F32_MAX)

    def are_within(self, values: Float32Array, largest: float) -> bool:
        """Whether no magnitude exceeds ``largest``, and all are numbers; allocates nothing."""
        # The sum of squares is the fastest look at a token's values; where it says nothing, a closer look decides.
        if values.size <= _FEW_VALUES:
            with np.errstate(over="ignore", invalid="ignore"):
                if float(values.dot(values)) <= min(largest * largest, F32_MAX):
                    return True
        with np.errstate(invalid="ignore"):
            high: np.float32 = np.maximum.reduce(values)
            low: np.float32 = np.minimum.reduce(values)
        return bool(high <= largest and low >= -largest)

    def put(self, frame: PayloadBuffer, key: bytes, payload_type: PayloadType, values: Float32Array) -> None:
        """Makes the frame with ``values``."""
        assert values.size <= frame.max_values, f"{values.size} values do not fit a buffer for {frame.max_values}"
        numbers = frame.numbers
        match payload_type:
            case PayloadType.F16:
                numbers.write_f16(values)
            case PayloadType.INT8:
                numbers.write_int8(values)
            case _:
                numbers.write_f32(values)
        frame.seal(key, payload_type, encoded_bytes(payload_type, values.size))

    def get(self, frame: PayloadBuffer, out: Float32Array) -> None:
        """Writes the frame's values into ``out``; ``PayloadBuffer.check`` says whether there are as many."""
        self._get(frame, out, 0)

    def add(self, row: Row, out: Float32Array, is_more: bool = False) -> int | None:
        """Leaves the sum of the contributions in ``out``, with ``is_more`` of them and what it holds already; returns
        None, or who spoilt it: the first rank after whose contribution it is not finite, or ``NO_RANK`` if that
        contribution is.

        A sum that is not finite never becomes finite again, so watching the running sum finds every bad contribution
        without a second look at its bytes.

        Raises:
            ProtocolError: a contribution does not have as many values.
        """
        for frame, rank in zip(row.frames, row.ranks, strict=True):
            frame.check(out.size, f"rank {rank}")
        for number, (frame, rank) in enumerate(zip(row.frames, row.ranks, strict=True)):
            if number == 0 and not is_more:
                self._get(frame, out, 0)
            else:
                self._add_one(frame, out)
            if not self.is_finite(out):
                values = np.empty(out.size, np.float32)
                self._get(frame, values, 0)
                return NO_RANK if self.is_finite(values) else rank
        return None

    def _add_one(self, frame: PayloadBuffer, out: Float32Array) -> None:
        with np.errstate(over="ignore", invalid="ignore"):
            for first in range(0, out.size, _FEW_VALUES):
                part = out[first : first + _FEW_VALUES]
                scratch = self._scratch[: part.size]
                self._get(frame, scratch, first)
                np.add(part, scratch, out=part)

    @staticmethod
    def _get(frame: PayloadBuffer, out: Float32Array, first: int) -> None:
        numbers = frame.numbers
        match frame.payload_type:
            case PayloadType.F16:
                numbers.read_f16(out, first)
            case PayloadType.INT8:
                numbers.read_int8(out, first)
            case _:
                numbers.read_f32(out, first)


class _NativeRow(Row):
    def __init__(self, frames: Sequence[PayloadBuffer], ranks: Sequence[int]) -> None:
        super().__init__(frames, ranks)
        self.n = len(self.frames)
        self.addresses = (ctypes.c_void_p * max(self.n, 1))(*(frame.address for frame in self.frames))
        self.address = ctypes.addressof(self.addresses)


class NativeArithmetic(Arithmetic):
    """In C."""

    def __init__(self, helper: Helper) -> None:
        super().__init__()
        self._library = helper.library
        self._convert = Conversions(*conversion_addresses())
        self.address = ctypes.addressof(self._convert)
        """Of the conversions, for C; valid as long as this lives."""

    def row(self, frames: Sequence[PayloadBuffer], ranks: Sequence[int]) -> Row:
        return _NativeRow(frames, ranks)

    def are_within(self, values: Float32Array, largest: float) -> bool:
        return bool(self._library.payload_is_within(values.ctypes.data, values.size, largest))

    def put(self, frame: PayloadBuffer, key: bytes, payload_type: PayloadType, values: Float32Array) -> None:
        assert values.size <= frame.max_values, f"{values.size} values do not fit a buffer for {frame.max_values}"
        address, at = values.ctypes.data, frame.address
        self._library.payload_put(self.address, at, key, int(payload_type), address, values.size)

    def get(self, frame: PayloadBuffer, out: Float32Array) -> None:
        self._library.payload_get(self.address, frame.address, out.ctypes.data, out.size)

    def add(self, row: Row, out: Float32Array, is_more: bool = False) -> int | None:
        assert isinstance(row, _NativeRow)
        found: int = self._library.payload_add(self.address, row.address, row.n, is_more, out.ctypes.data, out.size)
        if found == -1:
            return None
        if found < -1:
            number = -2 - found
            row.frames[number].check(out.size, f"rank {row.ranks[number]}")
            raise ProtocolError(f"rank {row.ranks[number]} sent a payload that cannot be added")
        return row.ranks[found] if found < row.n else NO_RANK


def make_arithmetic(cache: Path | None = None, with_helper: bool = True) -> Arithmetic:
    """In C if that can be had; ``cache`` as for ``load_helper``."""
    helper = load_helper(cache) if with_helper else None
    return NativeArithmetic(helper) if helper is not None else Arithmetic()
