"""Blocks: the units that are scheduled, as values. What a block is made of, how it is cut, what it keeps of a sequence,
and how it is computed. Pure data; nothing else in the program asks what kind a block is.
"""

from dataclasses import dataclass
from enum import StrEnum
from math import gcd, lcm
from typing import Any, Protocol

import msgspec

from tpi.model.spec import TensorSpec
from tpi.model.steps import Steps


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The half-open range ``start`` to ``stop``."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


EMPTY = Span(0, 0)


@dataclass(frozen=True)
class Measure:
    """What a block is cut in: ``total`` of what ``name`` says, ``unit`` at least to a rank; the last unit may be
    ragged."""

    name: str
    total: int
    unit: int

    @property
    def n_units(self) -> int:
        return -(-self.total // self.unit)


class Axis(StrEnum):
    """Along which axis a tensor is cut; ``COPY`` tensors go whole to every rank that holds part of the block."""

    ROWS = "rows"
    COLUMNS = "columns"
    COPY = "copy"


@dataclass(frozen=True)
class Slot:
    """A tensor's place in a block: its role in the graph, and how it is cut. ``step`` rows or columns belong to every
    ``group`` of what the block's measure counts (query heads that share a KV head are a group of its rows)."""

    role: str
    tensor: TensorSpec
    axis: Axis
    step: int = 1
    group: int = 1

    def span(self, share: Span) -> Span:
        """The rows or columns of the whole tensor that a rank with ``share`` needs; for ``COPY`` all rows."""
        if self.axis is Axis.COPY:
            return Span(0, self.tensor.n_rows)
        return grouped(share, self.step, self.group)


def grouped(share: Span, step: int, group: int) -> Span:
    """What ``share`` touches, where ``step`` of it belong to every ``group`` that is counted."""
    return Span(share.start // group * step, -(-share.stop // group) * step)


@dataclass(frozen=True)
class KvState:
    """Keys and values of a block, by cell: a KV head of ``head_dim`` values each for every ``group`` of what is
    counted."""

    head_dim: int
    group: int

    def width(self, share: Span) -> int:
        """Values of a cell, of keys and again of values."""
        return grouped(share, self.head_dim, self.group).size


class Graph(Protocol):
    """How a block is computed; equal and hashable by what it is computed with. Blocks with equal graphs, and slices of
    equal sizes, share what was built for one."""

    def build(self, g: Steps[Any]) -> Any:
        """The steps; the result is this rank's partial sum, or the logits."""


@dataclass(frozen=True)
class Block:
    """The unit that is scheduled. ``slots`` stand in the order in which the graph uses them."""

    index: int
    name: str
    layer: int
    measure: Measure
    slots: tuple[Slot, ...]
    graph: Graph
    state: KvState | None = None
    """What it keeps of every token for the tokens after it."""
    is_head: bool = False
    """It makes logits, of the rows that are sampled, and nothing follows."""

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name if self.is_head else f"{self.name} {self.layer}"


def measure_of(name: str, total: int, least: int, slots: tuple[Slot, ...]) -> Measure:
    """The measure of a block with ``slots``: a unit is a multiple of ``least``, and so many that every cut between
    columns falls between quantisation blocks of its tensor."""
    unit = least
    for slot in slots:
        if slot.axis is Axis.COLUMNS:
            elements = slot.tensor.type.block_elements
            unit = lcm(unit, elements // gcd(elements, slot.step))
    return Measure(name, total, unit)
