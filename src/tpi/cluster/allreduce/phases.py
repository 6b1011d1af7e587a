"""Allreduces of two phases: contributions travel, whoever got them adds, sums travel. The one that runs them all.

An algorithm of this kind is a ``Shape``: who sends which slices to whom. Here it is run over any mesh; ``nativephases``
runs small ones in C.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from tpi.cluster.allreduce.algorithm import Buffers, Cost, Routes, Scale, Waits, keys_of
from tpi.cluster.allreduce.arithmetic import Row
from tpi.cluster.allreduce.payload import PayloadBuffer, raise_fault, slices_of
from tpi.cluster.mesh.datalink import Exchange, Incoming
from tpi.cluster.mesh.mesh import Mesh, Sources, Targets
from tpi.model.flow import Flow
from tpi.runtime.protocols import Float32Array, SumStep

AT_ONCE_VALUES = 1 << 17
"""Contributions of so many values in all are received at once, even by who could receive them one by one."""


@dataclass(frozen=True)
class Shape:
    """One rank's part of a sum whose values are cut into ``n_slices``."""

    n_slices: int = 1
    sendings: tuple[tuple[int, int], ...] = ()
    """(Slice, rank) of its contribution, in the order in which they leave; only if it contributes."""
    own_slice: int | None = None
    """The slice that it adds up, if it does."""
    contributors: tuple[int, ...] = ()
    """Whose contributions it adds, itself perhaps among them, in this order."""
    sharing: tuple[int, ...] | None = None
    """Who gets its sum, which is encoded then, for itself as well; None: nobody, and it stays as it is."""
    totals: tuple[tuple[int, int], ...] = ()
    """(Slice, rank) of the sums that it gets from others. The total of a slice that it sent to the same rank comes into
    the same frame: it cannot come before the rank has all of that."""


@dataclass(frozen=True)
class Route:
    """What a shape needs of mesh and memory."""

    shape: Shape
    slices: dict[int, PayloadBuffer]
    """A frame for every slice that this rank contributes or gets the total of."""
    targets: tuple[tuple[int, Targets], ...]
    """Who gets which slice of the contribution, in order."""
    stages: tuple[tuple[Sources, Row], ...]
    """Contributions that are received and added together, one stage after the other."""
    total: PayloadBuffer
    to_all: Targets


class Phased(ABC):
    """Satisfies ``algorithm.Algorithm`` for whoever says its shape."""

    name: ClassVar[str]
    receives_singly: ClassVar[bool] = False
    """Large contributions are received and added one by one, into the same memory: what others send meanwhile waits in
    the system's buffers."""

    def __init__(self, mesh: Mesh, scale: Scale) -> None:
        self.mesh, self.scale, self._math = mesh, scale, scale.arithmetic
        self._buffers = [Buffers(scale.max_values) for _ in range(scale.n_parts)]
        self._routes: Routes[Route] = Routes()

    @abstractmethod
    def shape(self, flow: Flow, rank: int) -> Shape:
        """The part of ``rank`` in a sum of ``flow``."""

    @staticmethod
    @abstractmethod
    def cost(n_ranks: int) -> Cost:
        """See ``Algorithm``."""

    @staticmethod
    @abstractmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        """See ``Algorithm``."""

    def route(self, step: SumStep) -> Route:
        """The rank's route for steps like this one; the same one for all of them."""
        return self._routes.find(step, self._make_route)

    def run(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> Waits:
        """See ``Algorithm``."""
        mesh, math, route = self.mesh, self._math, self.route(step)
        shape, added, shared = route.shape, Exchange(), Exchange()
        partial_key, total_key = keys_of(step, mesh.epoch)
        values = partial if partial is not None else out
        assert values is not None, "who takes part contributes or receives"
        places = slices_of(values.size, shape.n_slices)
        if partial is not None:
            payload_type = math.choose_type(partial, self.scale.format_of(step))
            for number, frame in route.slices.items():
                math.put(frame, partial_key, payload_type, partial[places[number]])
            for number, targets in route.targets:
                if _size(places[number]):
                    mesh.send(targets, route.slices[number], shared)
        totals = {rank: Incoming(route.slices[number]) for number, rank in shape.totals if _size(places[number])}
        mesh.expect(mesh.sources(totals), total_key, shared)
        faults: dict[int, int | None] = {}
        if out is not None and shape.own_slice is not None and _size(places[shape.own_slice]):
            own, fault = out[places[shape.own_slice]], None
            for number, (sources, row) in enumerate(route.stages):
                mesh.expect(sources, partial_key, added)
                yield added
                fault = math.add(row, own, is_more=number > 0) if fault is None else fault
            faults[shape.own_slice] = fault
            if shape.sharing is not None:
                self._share(step, route, own, fault, total_key)
                mesh.send(route.to_all, route.total, shared)
        yield shared
        if out is not None:
            self._collect(step, route, out, places, faults)

    def _share(self, step: SumStep, route: Route, own: Float32Array, fault: int | None, total_key: bytes) -> None:
        """Makes the frame of this rank's sum, and leaves it as the others will read it."""
        if fault is not None:
            route.total.put_fault(total_key, fault)
            return
        self._math.put(route.total, total_key, self._math.choose_type(own, self.scale.format_of(step)), own)
        self._math.get(route.total, own)

    def _collect(
        self, step: SumStep, route: Route, out: Float32Array, places: list[slice], faults: dict[int, int | None]
    ) -> None:
        """Writes the totals into ``out``; of several faults, that of the first slice counts, on every rank."""
        senders = {number: rank for number, rank in route.shape.totals if _size(places[number])}
        faults |= {number: route.slices[number].fault for number in senders}
        for number in sorted(faults):
            raise_fault(step, faults[number])
        for number, rank in senders.items():
            route.slices[number].check(_size(places[number]), self.mesh.name_of(rank))
            self._math.get(route.slices[number], out[places[number]])

    def _make_route(self, step: SumStep) -> Route:
        mesh, buffers, shape = self.mesh, self._buffers[step.part], self.shape(step.flow, self.mesh.rank)
        room = slices_of(buffers.max_values, shape.n_slices)[0].stop
        contributed = {number for number, _ in shape.sendings}
        if shape.own_slice is not None and mesh.rank in step.flow.contributors:
            contributed.add(shape.own_slice)
        numbers = [number for number in range(shape.n_slices) if number in contributed | {n for n, _ in shape.totals}]
        slices = {number: buffers.frame("slice", number, room) for number in numbers}
        is_single = self.receives_singly and len(shape.contributors) * room > AT_ONCE_VALUES
        groups = [(rank,) for rank in shape.contributors] if is_single else [shape.contributors]
        stages = []
        for group in groups:
            frames = {
                rank: slices[shape.own_slice]
                if rank == mesh.rank and shape.own_slice is not None
                else buffers.frame("from", 0 if is_single else rank, room)
                for rank in group
            }
            sources = {rank: Incoming(frame) for rank, frame in frames.items() if rank != mesh.rank}
            stages.append((mesh.sources(sources), self._math.row(list(frames.values()), group)))
        return Route(
            shape,
            slices,
            _targets(mesh, shape),
            tuple(stages),
            buffers.frame("total", 0, room),
            mesh.targets(shape.sharing or ()),
        )


def _targets(mesh: Mesh, shape: Shape) -> tuple[tuple[int, Targets], ...]:
    """Slices in the order in which they leave; ranks that get the same one, one after the other, together."""
    grouped: list[tuple[int, list[int]]] = []
    for number, rank in shape.sendings:
        if grouped and grouped[-1][0] == number:
            grouped[-1][1].append(rank)
        else:
            grouped.append((number, [rank]))
    return tuple((number, mesh.targets(ranks)) for number, ranks in grouped)


def _size(place: slice) -> int:
    n: int = place.stop - place.start
    return n
