"""Ranges, and what a rank has of a block: a range of each of the block's measures. Pure data."""

from collections.abc import Iterable

import msgspec


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The half-open range ``start`` to ``stop``."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


EMPTY = Span(0, 0)

Spans = tuple[Span, ...]
"""Ranges one after the other: ascending, none empty, no two that touch."""


class Share(msgspec.Struct, frozen=True, array_like=True):
    """A rank's part of a block: a range of each of the block's measures."""

    spans: Spans

    @property
    def is_empty(self) -> bool:
        return not any(span.size for span in self.spans)

    @property
    def first(self) -> Span:
        """Of the first measure; a head's rows of the vocabulary."""
        return self.spans[0]


def joined(spans: Iterable[Span]) -> Spans:
    """Ascending ranges without the empty ones, those that touch made one."""
    found: list[Span] = []
    for span in spans:
        if span.size <= 0:
            continue
        if found and found[-1].stop == span.start:
            found[-1] = Span(found[-1].start, span.stop)
        else:
            found.append(span)
    return tuple(found)


def total_size(spans: Iterable[Span]) -> int:
    """How much ranges have together."""
    return sum(span.size for span in spans)


def taken(spans: Spans, start: int, stop: int) -> Spans:
    """What number ``start`` to ``stop`` of the ranges' members are, counted through all of them."""
    found, place = [], 0
    for span in spans:
        first, last = max(start, place), min(stop, place + span.size)
        if first < last:
            found.append(Span(span.start + first - place, span.start + last - place))
        place += span.size
    return tuple(found)


def turned(span: Span, turn: int, group: int) -> Span:
    """The groups of which ``span`` has the member of this number."""
    return Span(-(-(span.start - turn) // group), -(-(span.stop - turn) // group))


def grouped(span: Span, step: int, group: int) -> Span:
    """What ``span`` touches, where ``step`` of it belong to every ``group`` that is counted."""
    return Span(span.start // group * step, -(-span.stop // group) * step)
