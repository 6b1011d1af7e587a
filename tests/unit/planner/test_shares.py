"""From memory to shares: in proportion, and the same from start to start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.errors import UsageError
from tpi.planner.shares import check_shares, shares_by_memory

GIB = 1 << 30


def test_small_changes_of_free_memory_change_nothing() -> None:
    assert shares_by_memory([GIB + 1, 3 * GIB, 700_000_000]) == shares_by_memory(
        [GIB + 90_000_000, 3 * GIB, 680_000_000]
    )


@given(st.lists(st.integers(1, 1 << 50), min_size=1, max_size=8))
def test_shares_are_at_most_a_fifth_below_memory(memory: list[int]) -> None:
    for share, value in zip(shares_by_memory(memory), memory, strict=True):
        assert 0.8 * value < share <= value


def test_no_memory_is_no_share() -> None:
    assert shares_by_memory([0, 1, 2, 3]) == (0, 1, 2, 3)


def test_one_share_for_each_device() -> None:
    check_shares((3, 2), 2)
    with pytest.raises(UsageError, match="there are 2 shares for 3 devices"):
        check_shares((3, 2), 3)
