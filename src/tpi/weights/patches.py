"""Patches: rows and columns of whole tensors, the unit in which bytes of slices are asked for and moved. No I/O."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tpi.gguf.types import TYPES_BY_ID
from tpi.model.spans import Span, Spans, joined, total_size
from tpi.weights.layout import Part


@dataclass(frozen=True, slots=True)
class Patch:
    """A range of rows and ranges of columns of a whole tensor, cut between quantisation blocks. Its bytes are those of
    one row after the other, of each row those of one range after the other, without gaps."""

    tensor: str
    type_id: int
    rows: Span
    columns: Spans

    @property
    def is_empty(self) -> bool:
        return self.rows.size <= 0 or not self.columns

    @property
    def row_bytes(self) -> int:
        return TYPES_BY_ID[self.type_id].row_bytes(total_size(self.columns))

    @property
    def n_bytes(self) -> int:
        return self.rows.size * self.row_bytes

    def with_rows(self, start: int, stop: int) -> "Patch":
        """The same columns of other rows."""
        return Patch(self.tensor, self.type_id, Span(start, stop), self.columns)

    def runs_in(self, columns: Spans) -> Spans:
        """Where its bytes lie in rows that have ``columns``, which contain its own: ranges of bytes of each row."""
        row_bytes, runs, before = TYPES_BY_ID[self.type_id].row_bytes, list[Span](), 0
        for held in columns:
            for span in common((held,), self.columns):
                start = row_bytes(before + span.start - held.start)
                runs.append(Span(start, start + row_bytes(span.size)))
            before += held.size
        return joined(runs)

    def lies_in(self, n_rows: int, n_columns: int) -> bool:
        """Whether a tensor of such a size has it, and it can be cut there; for one that somebody asks for."""
        block, end = TYPES_BY_ID[self.type_id].block_elements, 0
        for span in self.columns:
            if not end <= span.start < span.stop <= n_columns or span.start % block or span.stop % block:
                return False
            end = span.stop
        return bool(self.columns) and 0 <= self.rows.start <= self.rows.stop <= n_rows


@dataclass(frozen=True, slots=True)
class PlacedPatch:
    """A patch with all columns of a part, and from which of the part's rows it goes."""

    patch: Patch
    row: int


def placed_patches(part: Part) -> Iterator[PlacedPatch]:
    """The patches that a part is made of."""
    row = 0
    for rows in part.rows:
        yield PlacedPatch(Patch(part.tensor, part.type_id, rows, part.columns), row)
        row += rows.size


def common(a: Spans, b: Spans) -> Spans:
    """What is in both."""
    return joined(
        Span(max(one.start, other.start), min(one.stop, other.stop))
        for one in a
        for other in b
        if one.stop > other.start
    )


def without(spans: Spans, hole: Spans) -> Spans:
    """What is not in ``hole``."""
    ends = [
        0,
        *(end for span in hole for end in (span.start, span.stop)),
        max((span.stop for span in spans), default=0),
    ]
    gaps = (Span(start, stop) for start, stop in zip(ends[::2], ends[1::2], strict=True))
    return common(spans, joined(gaps))


def intersect(a: Patch, b: Patch) -> Patch:
    """What two patches of a tensor both have; empty if nothing."""
    rows = Span(max(a.rows.start, b.rows.start), min(a.rows.stop, b.rows.stop))
    return Patch(a.tensor, a.type_id, rows, common(a.columns, b.columns))


def subtract(whole: Patch, hole: Patch) -> list[Patch]:
    """What is left of ``whole`` without ``hole``, which lies within it: above, beside it, below."""
    left = [
        whole.with_rows(whole.rows.start, hole.rows.start),
        Patch(whole.tensor, whole.type_id, hole.rows, without(whole.columns, hole.columns)),
        whole.with_rows(hole.rows.stop, whole.rows.stop),
    ]
    return [patch for patch in left if not patch.is_empty]


def gather(rows: npt.NDArray[np.uint8], runs: Spans, out: npt.NDArray[np.uint8]) -> None:
    """Copies the ranges of bytes of each row to ``out``, uint8 [rows, bytes], one after the other."""
    at = 0
    for run in runs:
        out[:, at : at + run.size] = rows[:, run.start : run.stop]
        at += run.size


def scatter(packed: npt.NDArray[np.uint8], runs: Spans, rows: npt.NDArray[np.uint8]) -> None:
    """The way back: what lies one after the other in ``packed`` goes to the ranges of each row."""
    at = 0
    for run in runs:
        rows[:, run.start : run.stop] = packed[:, at : at + run.size]
        at += run.size
