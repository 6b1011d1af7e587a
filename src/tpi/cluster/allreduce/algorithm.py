"""What an allreduce algorithm is, and what all have in common: what they are made for, their buffers.

An algorithm is one file with one class. Its ``run`` is a generator that reads from top to bottom: it sends, says what
it waits for by yielding it, and goes on when that has come. Whoever drives it (``driver``) does the waiting, so that
two sums can be under way at once.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Generic, Protocol, TypeVar

from tpi.cluster.allreduce.arithmetic import Arithmetic
from tpi.cluster.allreduce.payload import PayloadBuffer, PayloadFormat
from tpi.cluster.mesh.datalink import Exchange
from tpi.cluster.mesh.frames import FrameTag, Phase
from tpi.cluster.mesh.mesh import Mesh
from tpi.runtime.protocols import Float32Array, SumStep

Waits = Iterator[Exchange]
"""Yields what must have come and left before it goes on."""

_Route = TypeVar("_Route")


@dataclass(frozen=True)
class Scale:
    """For what an algorithm is made: up to ``max_values`` (tokens times width) in one sum, in ``payload_format``, of
    which ``n_parts`` may be under way at once; and what it computes with."""

    payload_format: PayloadFormat
    max_values: int
    n_parts: int = 1
    arithmetic: Arithmetic = field(default_factory=Arithmetic)

    def format_of(self, step: SumStep) -> PayloadFormat:
        """In what format a step's values travel: in full where they are a residual stream that is handed over, or no
        part of one."""
        return PayloadFormat.F32 if step.flow.is_handed_over or step.flow.is_exact else self.payload_format


@dataclass(frozen=True)
class Cost:
    """What a sum over some ranks takes: hops one after the other; payloads through the busiest port, in one direction;
    messages that the busiest rank sends and receives."""

    n_hops: int
    n_payloads: float
    n_messages: int


class Algorithm(Protocol):
    """One end of an allreduce, on one rank."""

    name: ClassVar[str]
    scale: Scale

    def __init__(self, mesh: Mesh, scale: Scale) -> None: ...

    def run(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> Waits:
        """One sum, flat arrays; see ``runtime.protocols.Allreduce``. ``partial`` is not read after the first yield,
        and what can be sent without waiting has been handed to the links by then."""

    @staticmethod
    def cost(n_ranks: int) -> Cost:
        """The formula of the file's first lines."""

    @staticmethod
    def n_buffered_values(n_ranks: int, n_values: int) -> int:
        """How many values its buffers hold in sums of ``n_values`` over ``n_ranks``."""


class Routes(Generic[_Route]):
    """What an algorithm prepares once for each part and each set of ranks that takes part."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], _Route] = {}

    def find(self, step: SumStep, make: Callable[[SumStep], _Route]) -> _Route:
        """The route of ``step``, made if need be."""
        key = step.part, step.flow.contributors, step.flow.receivers
        route = self._known.get(key)
        if route is None:
            route = self._known[key] = make(step)
        return route


class Buffers:
    """The frames of one part's sums: made when they are first needed, used again and again."""

    def __init__(self, max_values: int) -> None:
        """``max_values`` of a whole sum."""
        self.max_values = max_values
        self._frames: dict[tuple[str, int, int], PayloadBuffer] = {}

    def frame(self, role: str, number: int = 0, max_values: int | None = None) -> PayloadBuffer:
        """The frame for ``role`` and ``number``, with room for so many values, or for those of a whole sum."""
        room = self.max_values if max_values is None else max_values
        key = role, number, room
        if key not in self._frames:
            self._frames[key] = PayloadBuffer(room)
        return self._frames[key]


def keys_of(step: SumStep, epoch: int) -> tuple[bytes, bytes]:
    """The keys of a step's frames: partial results, totals."""
    tags = (FrameTag(step.pass_id, step.flow.block, phase, step.part) for phase in (Phase.PARTIAL, Phase.TOTAL))
    partial, total = (tag.key(epoch) for tag in tags)
    return partial, total
