"""MPI: it carries the bytes, for processes that ``mpiexec`` has started; what adds them is ours.

Up to ``FEW_VALUES`` everybody gets everybody's contribution, by MPI's allgather; more are cut: everybody gets its slice
of all contributions, by its alltoall, and the slices' sums go round by its allgather. Its own allreduce promises no
order. Payloads are not encrypted, and nothing recovers. Nobody gets on while this rank computes but by MPI's own means.

Costs 2τ + 2(N-1)·S/(N·B) (τ one-way latency, S encoded payload, B port rate, N ranks), few values τ + (N-1)·S/B.

Arithmetic: up to ``FEW_VALUES`` as one-shot, above as two-shot.
"""

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from tpi.cluster.allreduce.algorithm import Cost, Scale, Waits, keys_of
from tpi.cluster.allreduce.arithmetic import Arithmetic, largest_of
from tpi.cluster.allreduce.mpiworld import MpiGroup, MpiRanks, MpiWorld, Running
from tpi.cluster.allreduce.payload import (
    FAULT_BYTES,
    PayloadBuffer,
    PayloadFormat,
    encoded_bytes,
    raise_fault,
    slices_of,
)
from tpi.cluster.mesh.datalink import Exchange, check_step
from tpi.cluster.mesh.frames import HEADER_BYTES, KEY_BYTES, PayloadType, unpack_header
from tpi.cluster.mesh.mesh import Mesh
from tpi.errors import ProtocolError
from tpi.runtime.protocols import Float32Array, SumStep

FEW_VALUES = 1 << 14
"""From about here on a second hop costs less than the bytes that it saves."""
_ALIGNED_BYTES = 64

_Begin = Callable[[bool, Collection[int]], Running]
"""Begins an exchange, of wide frames or not, in which these send."""


class _Slots:
    """A frame for each of ``n`` ranks, one after the other in memory that MPI reads and writes, all for up to
    ``max_values`` in one type. What that cannot hold has wide frames, and here says ``NONE``."""

    def __init__(self, n: int, payload_type: PayloadType, max_values: int) -> None:
        self.payload_type, self._n, self._max_values = payload_type, n, max_values
        stride = -(-self.n_bytes(max_values) // _ALIGNED_BYTES) * _ALIGNED_BYTES
        self.memory = np.zeros(n * stride, np.uint8)
        self.places = [number * stride for number in range(n)]
        self.frames = [PayloadBuffer(max_values, self.memory[place : place + stride]) for place in self.places]

    @cached_property
    def wide(self) -> "_Slots":
        """The same for values as they are; seldom needed."""
        return _Slots(self._n, PayloadType.F32, self._max_values)

    def n_bytes(self, n_values: int) -> int:
        """Of a frame, with room for a fault."""
        return HEADER_BYTES + max(encoded_bytes(self.payload_type, n_values), FAULT_BYTES)

    def put(
        self, arithmetic: Arithmetic, number: int, key: bytes, payload_type: PayloadType, values: Float32Array
    ) -> None:
        """Makes the frame of ``number``."""
        if payload_type is self.payload_type:
            arithmetic.put(self.frames[number], key, payload_type, values)
        else:
            self.frames[number].put_nothing(key)
            arithmetic.put(self.wide.frames[number], key, payload_type, values)


@dataclass(frozen=True)
class _Route:
    """What sums of one flow and one part need; ranks are counted among the participants."""

    here: int
    contributors: tuple[int, ...]
    receivers: tuple[int, ...]
    group: MpiGroup
    receiving: MpiGroup
    """The receivers."""
    own: _Slots
    """What this rank sends; in the end, the totals."""
    came: _Slots
    """What it gets of the contributions; the same memory, where all get all."""


class Mpi:
    """Satisfies ``algorithm.Algorithm``. ``run`` waits for others where it is resumed, not for what it yields."""

    name: ClassVar[str] = "mpi"

    def __init__(self, mesh: Mesh, scale: Scale) -> None:
        """All ranks of the mesh make theirs at once; blocks until they have.

        Raises:
            UsageError: ``mpi4py`` is missing.
            LinkError: the ranks are not those of one ``mpiexec``, or the mesh was shut down.
        """
        self._mesh, self.scale, self._math = mesh, scale, scale.arithmetic
        self._ranks: MpiRanks = MpiWorld().ranks(mesh.rank, mesh.check_open)
        self._routes: dict[tuple[bool, PayloadFormat, int, tuple[int, ...], tuple[int, ...]], _Route] = {}

    @staticmethod
    def cost(n_ranks: int) -> Cost:
        """See ``Algorithm``; of many values."""
        return Cost(2, 2 * (n_ranks - 1) / n_ranks, 4 * (n_ranks - 1))

    @staticmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        """See ``Algorithm``."""
        few = n_ranks * min(n_values, FEW_VALUES)
        return few if n_values <= FEW_VALUES else few + 2 * n_values + 64 * n_ranks

    def run(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> Waits:
        """See ``Algorithm``."""
        values = partial if partial is not None else out
        assert values is not None, "who takes part contributes or receives"
        is_few = values.size <= FEW_VALUES
        route = self._route(step, is_few)
        way = self._one_shot if is_few else self._two_shot
        return way(step, route, values.size, partial, out)

    def _one_shot(
        self, step: SumStep, route: _Route, n_values: int, partial: Float32Array | None, out: Float32Array | None
    ) -> Waits:
        key, _ = keys_of(step, self._mesh.epoch)
        slots = route.own
        if partial is not None:
            payload_type = self._math.choose_type(partial, self.scale.format_of(step))
            slots.put(self._math, route.here, key, payload_type, partial)
        sizes = [n_values] * len(slots.frames)
        begin = _gathering(self._mesh, route.group, slots, route.here, range(len(sizes)), sizes)
        frames = yield from self._carry(key, slots, route.contributors, begin)
        if out is not None:
            raise_fault(step, self._math.add(self._math.row(frames, step.flow.contributors), out))

    def _two_shot(
        self, step: SumStep, route: _Route, n_values: int, partial: Float32Array | None, out: Float32Array | None
    ) -> Waits:
        math, form = self._math, self.scale.format_of(step)
        partial_key, total_key = keys_of(step, self._mesh.epoch)
        slots, here = route.own, route.here
        cuts = [slice(0, 0)] * len(slots.frames)
        for number, cut in zip(route.receivers, slices_of(n_values, len(route.receivers)), strict=True):
            cuts[number] = cut
        sizes = [cut.stop - cut.start for cut in cuts]
        if partial is not None:
            payload_type = math.choose_type(partial, form)
            for number, cut in enumerate(cuts):
                slots.put(math, number, partial_key, payload_type, partial[cut])
        begin = _swapping(self._mesh, route, sizes)
        frames = yield from self._carry(partial_key, route.came, route.contributors, begin)
        if out is None:
            return
        if sizes[here]:
            own = out[cuts[here]]
            fault = math.add(math.row(frames, step.flow.contributors), own)
            if fault is not None:
                slots.frames[here].put_fault(total_key, fault)
            else:
                slots.put(math, here, total_key, math.choose_type(own, form), own)
        adding = [number for number in route.receivers if sizes[number]]
        begin = _gathering(self._mesh, route.receiving, slots, here, route.receivers, sizes)
        totals = yield from self._carry(total_key, slots, adding, begin)
        for frame in totals:
            raise_fault(step, frame.fault)
        for number, frame in zip(adding, totals, strict=True):
            frame.check(sizes[number], f"rank {step.flow.participants[number]}")
            math.get(frame, out[cuts[number]])

    def _carry(
        self, key: bytes, into: _Slots, senders: Sequence[int], begin: _Begin
    ) -> Generator[Exchange, None, list[PayloadBuffer]]:
        """An exchange, and another one for what did not fit the format of the first, of which all have learnt then; the
        frames of ``senders``."""
        with begin(False, senders) as running:
            yield Exchange()
            running.wait(self._mesh.check_open)
        for number in senders:
            _check(into.frames[number], key)
        wide = {number for number in senders if into.frames[number].is_nothing}
        if wide:
            with begin(True, wide) as running:
                running.wait(self._mesh.check_open)
            for number in wide:
                _check(into.wide.frames[number], key)
        return [into.wide.frames[number] if number in wide else into.frames[number] for number in senders]

    def _route(self, step: SumStep, is_few: bool) -> _Route:
        flow = step.flow
        key = is_few, self.scale.format_of(step), step.part, flow.contributors, flow.receivers
        if key not in self._routes:
            self._routes[key] = self._make_route(step, is_few)
        return self._routes[key]

    def _make_route(self, step: SumStep, is_few: bool) -> _Route:
        flow, ranks = step.flow, step.flow.participants
        payload_type, _ = largest_of(self.scale.format_of(step))
        room = min(self.scale.max_values, FEW_VALUES)
        if not is_few:
            room = slices_of(self.scale.max_values, len(flow.receivers))[0].stop
        own = _Slots(len(ranks), payload_type, room)
        group = self._ranks.group(ranks, step.part)
        is_one_group = is_few or ranks == flow.receivers or self._mesh.rank not in flow.receivers
        return _Route(
            here=ranks.index(self._mesh.rank),
            contributors=tuple(ranks.index(rank) for rank in flow.contributors),
            receivers=tuple(ranks.index(rank) for rank in flow.receivers),
            group=group,
            receiving=group if is_one_group else self._ranks.group(flow.receivers, step.part),
            own=own,
            came=own if is_few else _Slots(len(ranks), payload_type, room),
        )


def _gathering(
    mesh: Mesh, group: MpiGroup, slots: _Slots, here: int, members: Sequence[int], sizes: Sequence[int]
) -> _Begin:
    """Frames of as many values as ``sizes`` says, from every sender to all ``members`` of the group."""

    def begin(is_wide: bool, senders: Collection[int]) -> Running:
        used = slots.wide if is_wide else slots
        counts = [used.n_bytes(sizes[number]) if number in senders else 0 for number in members]
        own = counts[members.index(here)]
        mesh.add_counts(own * (len(members) - 1), sum(counts) - own)
        return group.gather(used.memory, counts, [used.places[number] for number in members])

    return begin


def _swapping(mesh: Mesh, route: _Route, sizes: Sequence[int]) -> _Begin:
    """Frames of ``sizes[i]`` values from every sender to participant i."""

    def begin(is_wide: bool, senders: Collection[int]) -> Running:
        own, came = (route.own.wide, route.came.wide) if is_wide else (route.own, route.came)
        is_sender, expected = route.here in senders, came.n_bytes(sizes[route.here])
        sent = [own.n_bytes(size) if is_sender else 0 for size in sizes]
        received = [expected if number in senders else 0 for number in range(len(sizes))]
        mesh.add_counts(sum(sent) - sent[route.here], sum(received) - received[route.here])
        return route.group.swap((own.memory, sent, own.places), (came.memory, received, came.places))

    return begin


def _check(frame: PayloadBuffer, key: bytes) -> None:
    """Raises:
    ProtocolError: the frame is of another sum.
    """
    if frame.frame[:KEY_BYTES] != key:
        check_step("a rank", unpack_header(frame.frame), key)
        raise ProtocolError("a rank sent what does not belong to this sum")
