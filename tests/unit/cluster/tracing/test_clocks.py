"""Clocks that are off, that drift, and whose readings are late: what is stated about them holds."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tpi.cluster.tracing.clocks import Clock, read

OFF_S = -1234.5


def other(here_s: float, drift: float) -> float:
    """What the other clock says."""
    return OFF_S + here_s * (1 + drift)


@given(st.integers(0, 1 << 30), st.floats(-5e-4, 5e-4))
def test_moved_times_are_within_the_stated_error(seed: int, drift: float) -> None:
    random, clock = np.random.default_rng(seed), Clock()
    for begin in np.arange(0.0, 20.0, 0.5):
        readings, asked = [], begin
        for _ in range(4):  # ways there and back take unequally long, now and then very long
            there, back = random.exponential(2e-4, 2) * (100 if random.random() < 0.1 else 1)
            readings.append(read(asked, other(asked + there, drift), asked + there + back))
            asked += there + back
        clock.add(readings)
    happened = np.linspace(1.0, 19.5, 500)  # after the first reading, which is late if others came before it
    moved = clock.to_here(other(happened, drift))  # type: ignore[arg-type]
    assert np.abs(moved - happened).max() <= clock.error_s() + 1e-6
    assert clock.error_s() < 0.05


def test_a_bad_reading_between_good_ones_does_not_count() -> None:
    clock = Clock()
    for at, wrong in ((0.0, 0.0), (1.0, 0.4), (2.0, 0.0)):
        error = 0.5 if wrong else 1e-4
        clock.add([read(at - error, other(at, 0) + wrong, at + error)])
    assert clock.error_s() < 2e-4
    assert abs(clock.to_here(np.array([other(1.0, 0)]))[0] - 1.0) < 1e-9


def test_what_is_over_is_forgotten() -> None:
    clock = Clock()
    assert not clock.is_known
    for at in range(100):
        clock.add([read(at, other(at, 0), at + 1e-3)])
    clock.forget()
    clock.add([read(100.0, other(100, 0), 100.002)])
    assert clock.is_known and len(clock._readings) == 2
