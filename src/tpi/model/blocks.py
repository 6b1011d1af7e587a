"""Blocks: the units that are scheduled, as values. What a block is made of, how it is cut, what it keeps of a sequence,
and how it is computed. Pure data; nothing else in the program asks what kind a block is.
"""

from collections.abc import Iterable
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


class Share(msgspec.Struct, frozen=True, array_like=True):
    """A rank's part of a block: a range of each of the block's measures."""

    spans: tuple[Span, ...]

    @property
    def is_empty(self) -> bool:
        return not any(span.size for span in self.spans)

    @property
    def first(self) -> Span:
        """Of the first measure; a head's rows of the vocabulary."""
        return self.spans[0]


@dataclass(frozen=True)
class Measure:
    """What a block is cut in: ``total`` of what ``name`` says, ``unit`` at least to a rank, the last one may be ragged.
    Where there are more ranks than units, ``fine`` at least: then some rows are held by several ranks."""

    name: str
    total: int
    unit: int
    fine: int

    def unit_for(self, n_ranks: int) -> int:
        """The least that one of so many ranks may hold."""
        return self.unit if self.n_units >= n_ranks else self.fine

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
    ``group`` of what the block's measure of this number counts (query heads that share a KV head are a group of its
    rows)."""

    role: str
    tensor: TensorSpec
    axis: Axis
    step: int = 1
    group: int = 1
    measure: int = 0
    is_whole: bool = False
    """What a rank has of it lies in one piece, because it is not multiplied row by row."""

    def span(self, share: Share) -> Span:
        """The rows or columns of the whole tensor that a rank with ``share`` needs; for ``COPY`` all rows."""
        if self.axis is Axis.COPY:
            return Span(0, self.tensor.n_rows)
        return grouped(share.spans[self.measure], self.step, self.group)


def grouped(span: Span, step: int, group: int) -> Span:
    """What ``span`` touches, where ``step`` of it belong to every ``group`` that is counted."""
    return Span(span.start // group * step, -(-span.stop // group) * step)


@dataclass(frozen=True)
class KvState:
    """Keys and values of a block, by cell: a KV head of ``head_dim`` values each for every ``group`` of what the
    block's first measure counts."""

    head_dim: int
    group: int

    def width(self, share: Share) -> int:
        """Values of a cell, of keys and again of values."""
        return grouped(share.first, self.head_dim, self.group).size

    def runs(self, share: Share) -> list[tuple[Span, Span]]:
        """The rank's query heads in runs with the KV heads that they look at, of which all in a run have equally many;
        counted from the rank's first."""
        heads, runs = share.first, list[tuple[Span, Span]]()
        first_kv = heads.start // self.group
        for kv in range(first_kv, -(-heads.stop // self.group)):
            stop = min(heads.stop, (kv + 1) * self.group) - heads.start
            start = max(heads.start, kv * self.group) - heads.start
            at = kv - first_kv
            if runs and runs[-1][0].size == (stop - start) * runs[-1][1].size:
                runs[-1] = Span(runs[-1][0].start, stop), Span(runs[-1][1].start, at + 1)
            else:
                runs.append((Span(start, stop), Span(at, at + 1)))
        return runs


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
    measures: tuple[Measure, ...]
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


def measure_of(
    name: str, total: int, least: int, slots: Iterable[Slot], fine: int | None = None, number: int = 0
) -> Measure:
    """A measure of a block with ``slots``: a unit is a multiple of ``least`` (for more ranks, of ``fine``), and so many
    that every cut between columns falls between quantisation blocks of its tensor."""
    cut = [slot for slot in slots if slot.axis is Axis.COLUMNS and slot.measure == number]
    elements = [(slot.tensor.type.block_elements, slot.step) for slot in cut]
    aligned = lcm(*(n // gcd(n, step) for n, step in elements))
    return Measure(name, total, lcm(least, aligned), lcm(fine or least, aligned))
