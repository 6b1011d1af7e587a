"""Seats: numbers that sequences have while they live, for what ranks keep beside cells, windows and recurrent states.
Where a sequence can go on there, and what has to be copied for that. One thread."""

from collections import abc
from dataclasses import dataclass, field

from tpi.engine.cells import count_alike
from tpi.runtime.passes import SequenceCopy
from tpi.runtime.retention import Retention


@dataclass(eq=False)
class Seat:
    """The tokens are those of the last one that had it."""

    number: int
    tokens: list[int] = field(default_factory=list)
    is_taken: bool = False
    used_at: int = 0


@dataclass(frozen=True)
class Source:
    """Where a text goes on: at a seat (None: nowhere, or what there is lies in cells alone), after ``n_resumed`` of its
    tokens; up to ``n_alike`` it could have, if a state had been kept."""

    seat: Seat | None
    n_resumed: int
    n_alike: int


class Seats:
    """All of them. What ranks keep of them is ``retention``'s to know."""

    def __init__(self, n_seats: int, retention: Retention) -> None:
        self._retention = retention
        self._seats = [Seat(number) for number in range(n_seats)]
        self._clock = 0
        self.copies: list[SequenceCopy] = []
        """To be made by ranks before the next pass that holds."""

    def find(self, beginning: abc.Sequence[int]) -> Source:
        """Where a text goes on that begins so, with tokens that lie in cells."""
        if not self._retention.is_bound:
            return Source(None, len(beginning), len(beginning))
        found, n_most = Source(None, 0, 0), 0
        for seat in sorted(self._seats, key=lambda seat: seat.is_taken):
            n_alike = count_alike(seat.tokens, beginning)
            n_most = max(n_most, n_alike)
            n_resumed = self._retention.resume(seat.number, n_alike)
            if n_resumed > found.n_resumed:
                found = Source(seat, n_resumed, n_alike)
        return Source(found.seat, found.n_resumed, n_most)

    @property
    def are_taken(self) -> bool:
        """There is none for another."""
        return all(seat.is_taken for seat in self._seats)

    @property
    def texts(self) -> list[list[int]]:
        """The tokens of all."""
        return [seat.tokens for seat in self._seats]

    def reserve(self) -> Seat:
        """The last one, which is for no sequence from now on; to be filled by ``copy``."""
        seat = self._seats[-1]
        assert not seat.is_taken, "it is reserved before others come"
        seat.is_taken = True
        return seat

    def find_number(self, number: int) -> Seat:
        """The one of this number, which must be one."""
        return self._seats[number]

    def take(self, source: Source | None = None, number: int | None = None) -> Seat:
        """A free one: that of the number, if it is free; the source's, if nothing is lost by that; or else the one that
        was used longest ago. It gets what is kept at the source's."""
        free = [seat for seat in self._seats if not seat.is_taken]
        asked = next((seat for seat in free if seat.number == number), None)
        seat = asked or min(free, key=lambda seat: seat.used_at)
        other = source.seat if source is not None else None
        if source is not None and other is not None:
            is_spare = len(other.tokens) == source.n_resumed and asked is None
            if not other.is_taken and (is_spare or len(free) == 1):
                seat = other
            if seat is not other:
                self.copy(other, seat, source.n_resumed)
        seat.is_taken = True
        return seat

    def copy(self, source: Seat, target: Seat, n_tokens: int) -> None:
        """What is kept of the first tokens at a seat is to be copied to another."""
        self.copies.append(SequenceCopy(source.number, target.number, n_tokens))
        self._retention.copy(source.number, target.number, n_tokens)

    def leave(self, seat: Seat) -> None:
        """Its tokens stay until another takes it."""
        self._clock += 1
        seat.is_taken, seat.used_at = False, self._clock
