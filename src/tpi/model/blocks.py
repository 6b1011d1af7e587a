"""Blocks: the units that are scheduled, as values. What a block is made of, how it is cut, what it keeps of a sequence,
and how it is computed. Pure data; nothing else in the program asks what kind a block is.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from math import gcd, lcm
from typing import Any, Protocol

from tpi.model.spans import EMPTY, Share, Span, Spans, grouped, joined, turned
from tpi.model.spec import TensorSpec
from tpi.model.states import RecurrentState, State
from tpi.model.steps import Steps


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


EVERY = -1
"""Of a group all that it has."""


class Axis(StrEnum):
    """Along which axis a tensor is cut. ``COPY`` tensors go whole to every rank that holds part of the block, ``FIRST``
    ones to the rank alone whose part is the first: what is added once, such as a bias of the sum."""

    ROWS = "rows"
    COLUMNS = "columns"
    COPY = "copy"
    FIRST = "first"


@dataclass(frozen=True)
class Extent:
    """A part of a whole tensor: ranges of its rows, and of its columns."""

    rows: Spans
    columns: Spans


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
    rows: Span | None = None
    """The tensor's rows that the slot is about, where several are fused in one; None: all."""
    column: int | None = None
    """The tensor's only column that the slot is about."""
    starts: tuple[int, ...] = (0,)
    """The cut is made anew from each of these rows or columns: heads whose parts lie in several places."""
    turns: tuple[int, ...] = ()
    """For every start which of a group lie there, counted from 0, or ``EVERY``: all that it has; empty: so
    everywhere."""

    def extent(self, share: Share) -> Extent:
        """The part of the whole tensor that a rank with ``share`` needs."""
        rows = self.rows or Span(0, self.tensor.n_rows)
        columns = Span(0, self.tensor.n_columns) if self.column is None else Span(self.column, self.column + 1)
        if self.axis is Axis.COPY:
            return Extent((rows,), (columns,))
        span = share.spans[self.measure]
        if self.axis is Axis.FIRST:
            return Extent((rows,), (columns,)) if span.size and not span.start else Extent((), (columns,))
        if not span.size:
            return Extent((), (columns,)) if self.axis is Axis.ROWS else Extent((rows,), ())
        cuts = (self._cut(span, number) for number in range(len(self.starts)))
        if self.axis is Axis.COLUMNS:
            return Extent((rows,), joined(cuts))
        return Extent(joined(Span(rows.start + cut.start, rows.start + cut.stop) for cut in cuts), (columns,))

    def _cut(self, span: Span, number: int) -> Span:
        """What lies behind the start of this number."""
        at, turn = self.starts[number], self.turns[number] if self.turns else EVERY
        cut = grouped(span, self.step, self.group)
        if turn != EVERY:
            cut = turned(span, turn, self.group)
            cut = Span(cut.start * self.step, cut.stop * self.step)
        return Span(at + cut.start, at + cut.stop)


class Graph(Protocol):
    """How a block is computed; equal and hashable by what it is computed with. Blocks with equal graphs, and slices of
    equal sizes, share what was built for one."""

    def build(self, g: Steps[Any]) -> Any:
        """The steps; the result is this rank's partial sum, or the logits, or of a block that follows a sum the
        residual stream. One that leaves something gives its part of the sum, then the parts that stay."""


@dataclass(frozen=True)
class Experts:
    """Networks of a block of which every token chooses ``n_used`` of ``n``: each is a piece of its own, of ``width``
    columns, cut in ``unit`` at least.

    They are cut together, in the block's measure number ``measure``. It counts the first ``unit`` columns of every
    expert, then the second ones, and so on: as long as there are no more ranks than units in an expert, each rank has
    the same columns of all experts; otherwise experts are spread over the ranks as well as cut.
    """

    n: int
    n_used: int
    width: int
    unit: int
    slots: tuple[Slot, ...]
    """Of the first expert."""
    graph: Graph
    """Of one expert: from the rows that chose it to what they get of it."""
    measure: int = 0

    def whole(self) -> Measure:
        """The measure that they are cut in."""
        return Measure("columns of experts", self.n * self.width, self.n * self.unit, self.unit)

    def columns(self, share: Share, expert: int) -> Span:
        """The columns of an expert that a rank with ``share`` holds."""
        span, turn = share.spans[self.measure], self.n * self.unit
        first = -(-(span.start - expert * self.unit) // turn)
        stop = -(-(span.stop - expert * self.unit) // turn)
        return Span(first * self.unit, min(stop * self.unit, self.width)) if first < stop else EMPTY

    def slots_of(self, expert: int) -> tuple[Slot, ...]:
        """The slots of one expert; they are cut by a share that is a range of its columns."""
        return tuple(_of_expert(slot, expert, self.n) for slot in self.slots)


def _of_expert(slot: Slot, expert: int, n_experts: int) -> Slot:
    if slot.column is not None:
        return replace(slot, column=slot.column + expert)
    stride = slot.tensor.n_rows // n_experts
    rows = slot.rows or Span(0, stride)
    return replace(slot, rows=Span(rows.start + expert * stride, rows.stop + expert * stride))


@dataclass(frozen=True)
class Leavings:
    """What a block leaves to the next one, which goes on where it stopped because something had to be summed first: of
    every row ``n_summed`` values, which are summed in 32 bits, and behind them what stays on the rank: parts of so many
    values for every so many of what the block's first measure counts."""

    n_summed: int
    parts: tuple[tuple[int, int], ...]

    def widths(self, share: Share) -> tuple[int, ...]:
        """Values of each part that a rank has."""
        return tuple(grouped(share.first, step, group).size for step, group in self.parts)


@dataclass(frozen=True)
class Block:
    """The unit that is scheduled. ``slots`` stand in the order in which the graph uses them."""

    index: int
    name: str
    layer: int
    measures: tuple[Measure, ...]
    slots: tuple[Slot, ...]
    graph: Graph
    state: State | None = None
    """What it keeps of every sequence for the tokens to come."""
    is_head: bool = False
    """It makes logits, of the rows that are sampled, and nothing follows."""
    experts: Experts | None = None
    n_vectors: int = 1
    """Its sum carries so many vectors as wide as the residual stream."""
    is_kept: bool = False
    """Its sum is not added to the residual stream: the next block, of the same layer, says what becomes of it."""
    is_own: bool = False
    """It follows a sum: every rank that takes part in its layer holds all of it and computes it for itself, from the
    residual stream and the sum that was kept; what comes out is the residual stream."""
    leaves: Leavings | None = None
    """It ends in a sum in the middle of something; it is kept, and the next block, cut alike, goes on from it."""
    reads_state_of: int | None = None
    """Index of the block whose state it looks at, as it has none; both are cut alike and lie on the same ranks."""

    @property
    def title(self) -> str:
        """What people call it."""
        return self.name if self.is_head else f"{self.name} {self.layer}"

    @property
    def looks_back(self) -> bool:
        """Its rows need others'."""
        return self.state is not None or self.reads_state_of is not None


def has_recurrent_state(blocks: Iterable[Block]) -> bool:
    """Whether a sequence can be cut back only to where a state was kept."""
    return any(isinstance(block.state, RecurrentState) for block in blocks)


OWN = (Measure("copies", 1, 1, 1),)
"""The measures of a block that is everybody's own."""


def measure_of(
    name: str, total: int, least: int, slots: Iterable[Slot], fine: int | None = None, number: int = 0
) -> Measure:
    """A measure of a block with ``slots``: a unit is a multiple of ``least`` (for more ranks, of ``fine``), and so many
    that every cut between columns falls between quantisation blocks of its tensor."""
    aligned = aligned_columns(slots, number)
    return Measure(name, total, lcm(least, aligned), lcm(fine or least, aligned))


def aligned_columns(slots: Iterable[Slot], number: int = 0) -> int:
    """Of how many of what measure ``number`` counts a cut must be a multiple, so that it falls between quantisation
    blocks of all tensors that are cut between columns."""
    cut = [slot for slot in slots if slot.axis is Axis.COLUMNS and slot.measure == number]
    elements = [(slot.tensor.type.block_elements, slot.step) for slot in cut]
    return lcm(*(n // gcd(n, step) for n, step in elements))
