"""Sums of two phases in C (``native.exchange``): the same as ``phases``, in two calls for each sum.

For sums that the thread that runs passes carries through itself. Owns the C structs, which refer to the memory of the
algorithm's frames and to the mesh.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint8, c_uint32, c_void_p
from dataclasses import dataclass
from typing import Any, NoReturn

from tpi.cluster.allreduce.arithmetic import NativeArithmetic, largest_of
from tpi.cluster.allreduce.payload import NO_RANK, raise_fault
from tpi.cluster.allreduce.phases import Phased, Route
from tpi.cluster.mesh.frames import KEY_BYTES
from tpi.cluster.mesh.nativemesh import NativeMesh
from tpi.errors import ProtocolError
from tpi.model.flow import Flow
from tpi.native.exchange import TIMED_OUT
from tpi.runtime.protocols import Float32Array, NativeSum, SumStep

_FAULTY, _WRONG_CONTRIBUTION, _WRONG_TOTAL = 3, 4, 5
_NO_RANK = -1


class _Sum(ctypes.Structure):
    """``phased_sum``."""

    _fields_ = (
        ("mesh", c_void_p),
        ("convert", c_void_p),
        ("epoch", c_uint32),
        *((name, c_int32) for name in ("part", "n_slices", "own_slice", "shares")),
        *((name, c_int32) for name in ("n_sendings", "n_contributions", "n_row", "n_to_all", "n_totals")),
        ("slices", POINTER(c_void_p)),
        ("sending_slices", POINTER(c_int32)),
        ("sending_links", POINTER(c_int32)),
        ("contribution_links", POINTER(c_int32)),
        ("contribution_frames", POINTER(c_void_p)),
        ("contribution_capacities", POINTER(c_uint32)),
        ("row", POINTER(c_void_p)),
        ("row_ranks", POINTER(c_int32)),
        ("total", c_void_p),
        ("to_all", POINTER(c_int32)),
        ("total_slices", POINTER(c_int32)),
        ("total_links", POINTER(c_int32)),
        ("slice_capacity", c_uint32),
        *((name, c_int32) for name in ("stage", "added", "shared", "format", "fault")),
        ("largest", c_float),
        ("out", c_void_p),
        ("n", c_int64),
        ("partial_key", c_uint8 * KEY_BYTES),
        ("total_key", c_uint8 * KEY_BYTES),
    )


class NativePhases:
    """Runs an algorithm's sums; one of each part may be under way."""

    def __init__(self, algorithm: Phased, mesh: NativeMesh, arithmetic: NativeArithmetic) -> None:
        self._algorithm, self._mesh = algorithm, mesh
        self._arithmetic, self._library = arithmetic, mesh.library
        self._sums: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[_Sum, int]] = {}

    def can_run(self, step: SumStep) -> bool:
        """Whether contributions are received all at once, as they are here."""
        return len(self._algorithm.route(step).stages) == 1

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        """See ``Allreduce``; flat arrays."""
        _, at = self._sum(step)
        payload_type, largest = self.type_of(step)
        values = partial if partial is not None else out
        assert values is not None, "who takes part contributes or receives"
        result = self._library.sum_start(
            at,
            step.pass_id,
            step.flow.block,
            payload_type,
            largest,
            None if partial is None else partial.ctypes.data,
            None if out is None else out.ctypes.data,
            values.size,
        )
        if result:
            self._mesh.raise_for(result)

    def finish(self, step: SumStep) -> None:
        """See ``Allreduce``."""
        _, at = self._sum(step)
        while result := self._library.sum_finish(at, -1):
            if result != TIMED_OUT:  # a signal: Python has looked at it
                self.raise_for(result, step)

    def raise_for(self, result: int, step: SumStep) -> NoReturn:
        """Raises what a result other than 0 means.

        Raises:
            NumericError: a rank's contribution, or the sum, is not finite.
            ProtocolError, LinkError: a peer sent what cannot be, or is lost.
        """
        entry, _ = self._sum(step)
        if result == _FAULTY:
            raise_fault(step, NO_RANK if entry.fault == _NO_RANK else entry.fault)
        if result in (_WRONG_CONTRIBUTION, _WRONG_TOTAL):
            raise self._wrong(step, entry, result == _WRONG_CONTRIBUTION)
        self._mesh.raise_for(result)

    def try_find(self, flow: Flow) -> NativeSum | None:
        """What carries the sums of ``flow`` through, if it can."""
        step = SumStep(0, flow)
        return _Carrier(self, self._sum(step)[1], self._library) if self.can_run(step) else None

    def type_of(self, step: SumStep) -> tuple[int, float]:
        """In what payload type a step's values travel, and the largest magnitude that it holds."""
        payload_type, largest = largest_of(self._algorithm.scale.format_of(step))
        return int(payload_type), largest

    def _sum(self, step: SumStep) -> tuple[_Sum, int]:
        key = step.part, step.flow.contributors, step.flow.receivers
        found = self._sums.get(key)
        if found is None:
            made = self._make(step)
            found = self._sums[key] = made, ctypes.addressof(made)
        return found

    def _make(self, step: SumStep) -> _Sum:
        route, mesh = self._algorithm.route(step), self._mesh
        shape, [(sources, row)] = route.shape, route.stages
        sendings = [(number, rank) for number, targets in route.targets for rank in targets.ranks]
        return _Sum(
            mesh=mesh.address,
            convert=self._arithmetic.address,
            epoch=mesh.epoch,
            part=step.part,
            n_slices=shape.n_slices,
            own_slice=-1 if shape.own_slice is None else shape.own_slice,
            shares=shape.sharing is not None,
            n_sendings=len(sendings),
            n_contributions=len(sources.frames),
            n_row=len(row.frames),
            n_to_all=len(shape.sharing or ()),
            n_totals=len(shape.totals),
            slices=_pointers([_address(route, number) for number in range(shape.n_slices)]),
            sending_slices=_numbers([number for number, _ in sendings]),
            sending_links=_numbers(mesh.places_of([rank for _, rank in sendings])),
            contribution_links=_numbers(mesh.places_of(list(sources.frames))),
            contribution_frames=_pointers([incoming.buffer.address for incoming in sources.frames.values()]),
            contribution_capacities=_sizes([incoming.buffer.capacity_bytes for incoming in sources.frames.values()]),
            row=_pointers([frame.address for frame in row.frames]),
            row_ranks=_numbers(row.ranks),
            total=route.total.address,
            to_all=_numbers(mesh.places_of(route.to_all.ranks)),
            total_slices=_numbers([number for number, _ in shape.totals]),
            total_links=_numbers(mesh.places_of([rank for _, rank in shape.totals])),
            slice_capacity=route.total.capacity_bytes,
        )

    def _wrong(self, step: SumStep, entry: _Sum, is_contribution: bool) -> ProtocolError:
        route = self._algorithm.route(step)
        rank = entry.fault
        if not is_contribution:
            rank = next(sender for number, sender in route.shape.totals if number == entry.fault)
        return ProtocolError(f"{self._mesh.name_of(rank)} sent a payload of another length or type for {step}")


@dataclass(frozen=True)
class _Carrier:
    """Satisfies ``runtime.protocols.NativeSum``."""

    phases: NativePhases
    address: int
    library: Any

    def type_of(self, flow: Flow) -> tuple[int, float]:
        return self.phases.type_of(SumStep(0, flow))

    def raise_for(self, result: int, step: SumStep) -> NoReturn:
        self.phases.raise_for(result, step)


def _address(route: Route, number: int) -> int | None:
    return route.slices[number].address if number in route.slices else None


def _numbers(values: Sequence[int]) -> ctypes.Array[c_int32]:
    return (c_int32 * max(len(values), 1))(*values)


def _sizes(values: Sequence[int]) -> ctypes.Array[c_uint32]:
    return (c_uint32 * max(len(values), 1))(*values)


def _pointers(values: Sequence[int | None]) -> ctypes.Array[c_void_p]:
    return (c_void_p * max(len(values), 1))(*values)
