"""Other devices' clocks: how far each is from this one's, with a bound for the error. Pure arithmetic, no state but
that.

Asked at a and answered at b by this clock, a clock that said t is ahead by t - (a + b) / 2, give or take (b - a) / 2:
it was read somewhere between the two (Cristian, Probabilistic clock synchronization, 1989). Between two readings a
clock that runs at its own, steady rate is ahead by what lies between; the error is at most that of the worse reading.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_NEAR_S = 3.0
_WORSE = 2.0
"""A reading that is so much worse than another one near it is not used: its error is that of a busy device."""

Seconds = npt.NDArray[np.float64]


class Reading(NamedTuple):
    """When the other clock was read, by itself; how far it was ahead; the bound of that, all in seconds."""

    at_s: float
    ahead_s: float
    error_s: float


def read(asked_s: float, said_s: float, answered_s: float) -> Reading:
    """From a question and its answer; ``said_s`` is the other clock's."""
    return Reading(said_s, said_s - (asked_s + answered_s) / 2, (answered_s - asked_s) / 2)


class Clock:
    """One other device's. Times between its first and its last reading can be moved."""

    def __init__(self) -> None:
        self._readings: list[Reading] = []

    def add(self, readings: Sequence[Reading]) -> None:
        """Of readings that were taken one directly after the other, the best counts."""
        self._readings.append(min(readings, key=lambda reading: reading.error_s))

    @property
    def is_known(self) -> bool:
        """Whether it was read at all."""
        return bool(self._readings)

    def error_s(self) -> float:
        """By how much a time that was moved to this device's clock may be wrong."""
        return max(reading.error_s for reading in self._used())

    def to_here(self, times_s: Seconds) -> Seconds:
        """Times of the other clock as this one would have told them."""
        used = self._used()
        ahead = np.interp(times_s, [reading.at_s for reading in used], [reading.ahead_s for reading in used])
        return times_s - ahead

    def forget(self) -> None:
        """Times before the last reading will not be asked for any more."""
        del self._readings[:-1]

    def _used(self) -> list[Reading]:
        ends = self._readings[0], self._readings[-1]
        return [
            reading
            for reading in self._readings
            if reading in ends or reading.error_s <= _WORSE * self._best_near(reading.at_s)
        ]

    def _best_near(self, at_s: float) -> float:
        return min(reading.error_s for reading in self._readings if abs(reading.at_s - at_s) <= _NEAR_S)
