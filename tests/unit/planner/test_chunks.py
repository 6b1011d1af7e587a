"""Passes are as long as it takes for computing to cover reading, and no longer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.planner.chunks import ASSUMED_DISK_BYTES_PER_S, PassLoad, Speeds, covering_tokens, possible_tokens

LENGTHS = [128, 256, 512]
GB = 10**9


@pytest.mark.parametrize(
    ("disk_bytes_per_s", "expected"), [(2 * GB, 128), (1.0 * GB, 128), (0.9 * GB, 256), (GB / 2, 256), (GB / 100, 512)]
)
def test_a_slower_disk_makes_longer_passes(disk_bytes_per_s: float, expected: int) -> None:
    """A gigabyte that is read per pass, and a second of computing per 128 tokens."""
    load, speeds = PassLoad(GB, 2 * GB), Speeds(256 * GB, disk_bytes_per_s)
    assert covering_tokens([load], [speeds], LENGTHS) == expected


def test_the_slowest_of_all_ranks_count() -> None:
    """One reads for four seconds; whoever computes for long covers that, as everyone waits for everyone's sums."""
    reader, idle = PassLoad(4 * GB, 2 * GB), PassLoad(0, 2 * GB)
    fast, slow = Speeds(256 * GB, GB), Speeds(64 * GB, 0.0)
    assert covering_tokens([reader, idle], [fast, fast], LENGTHS) == 512
    assert covering_tokens([reader, idle], [fast, slow], LENGTHS) == 128
    assert covering_tokens([idle, idle], [slow, fast], LENGTHS) == 128


def test_what_is_not_known() -> None:
    load = PassLoad(GB, 2 * GB)
    assert covering_tokens([load], [Speeds(0.0, 1.0)], LENGTHS) == 128
    assert covering_tokens([load, load], [Speeds(0.0, 1.0), Speeds(256 * GB, GB)], LENGTHS) == 512
    assert covering_tokens([], [], LENGTHS) == 128
    for rate in (256 * GB, 1000 * GB):
        assumed = covering_tokens([load], [Speeds(rate, ASSUMED_DISK_BYTES_PER_S)], LENGTHS)
        assert covering_tokens([load], [Speeds(rate)], LENGTHS) == assumed > 128


@pytest.mark.parametrize(
    ("usual", "n_cells", "expected"),
    [(128, 2048, LENGTHS), (128, 512, LENGTHS), (128, 320, [128, 256, 320]), (128, 160, [128, 160]), (32, 32, [32])],
)
def test_nobody_needs_longer_passes_than_the_context(usual: int, n_cells: int, expected: list[int]) -> None:
    assert possible_tokens(usual, n_cells) == expected


@given(
    st.lists(st.tuples(st.integers(0, 1 << 50), st.integers(0, 1 << 50)), max_size=4),
    st.floats(0, 1e18),
    st.floats(0, 1e18),
)
def test_any_figures_give_a_possible_length(loads: list[tuple[int, int]], flop_per_s: float, disk: float) -> None:
    speeds = [Speeds(flop_per_s, disk)] * len(loads)
    assert covering_tokens([PassLoad(*load) for load in loads], speeds, LENGTHS) in LENGTHS
