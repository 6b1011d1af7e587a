"""The arithmetic of a rank's memory: limits hold, and the minimum that an error names is enough."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tpi.config import parse_bytes
from tpi.errors import MemoryBudgetError
from tpi.planner.memory import JITTER_BYTES, Needs, plan_memory

MIB = 1 << 20
SIZES = st.integers(0, 1 << 44)
NEEDS = st.builds(
    Needs,
    process_bytes=SIZES,
    kv_bytes=SIZES,
    graphs_bytes=SIZES,
    activations_bytes=SIZES,
    links_bytes=SIZES,
    logits_bytes=SIZES,
    growth_bytes=SIZES,
    tokenizer_bytes=SIZES,
)


def _needs() -> Needs:
    return Needs(
        process_bytes=46 * MIB,
        kv_bytes=20 * MIB,
        graphs_bytes=3 * MIB,
        activations_bytes=2 * MIB,
        links_bytes=MIB,
        logits_bytes=MIB,
        growth_bytes=7 * MIB,
        tokenizer_bytes=3 * MIB,
    )


def test_without_limits_everything_is_pinned() -> None:
    plan = plan_memory(_needs(), 16 * MIB, 900 * MIB, None, None)
    assert plan.window_bytes == 900 * MIB
    assert plan.total_bytes == 983 * MIB


def test_the_window_gets_what_the_limit_leaves() -> None:
    plan = plan_memory(_needs(), 16 * MIB, 900 * MIB, 200 * MIB, None)
    assert plan.total_bytes == 200 * MIB
    assert plan_memory(_needs(), 16 * MIB, 900 * MIB, 200 * MIB, 32 * MIB).window_bytes == 32 * MIB
    assert plan_memory(_needs(), 16 * MIB, 20 * MIB, 200 * MIB, 1 << 40).window_bytes == 20 * MIB


def test_a_rank_without_pieces_needs_no_window() -> None:
    plan = plan_memory(_needs(), 0, 0, 100 * MIB, 5 * MIB)
    assert plan.window_bytes == 0
    with pytest.raises(MemoryBudgetError, match="window 0KiB"):
        plan_memory(_needs(), 0, 0, 60 * MIB, None)


def test_a_window_below_the_largest_piece() -> None:
    with pytest.raises(MemoryBudgetError, match=r"a window of 10MiB is too small: .* needs 16MiB"):
        plan_memory(_needs(), 16 * MIB - 5, 900 * MIB, None, 10 * MIB)


@given(needs=NEEDS, piece=SIZES, more=SIZES, limit=SIZES, wanted=st.one_of(st.none(), SIZES))
def test_limits_hold_or_are_refused(needs: Needs, piece: int, more: int, limit: int, wanted: int | None) -> None:
    try:
        plan = plan_memory(needs, piece, piece + more, limit, wanted)
    except MemoryBudgetError as error:
        assert "\n" not in str(error) and "e+" not in str(error)
        return
    assert plan.total_bytes <= limit
    assert piece <= plan.window_bytes <= piece + more
    assert wanted is None or plan.window_bytes <= max(wanted, piece)


@given(needs=NEEDS, piece=SIZES, more=SIZES, limit=SIZES)
def test_the_minimum_that_is_named_is_enough_and_no_waste(needs: Needs, piece: int, more: int, limit: int) -> None:
    assume(limit < needs.fixed_bytes + piece)
    with pytest.raises(MemoryBudgetError) as caught:
        plan_memory(needs, piece, piece + more, limit, None)
    match = re.search(r"at least (\S+) ", str(caught.value))
    assert match is not None
    minimum = parse_bytes(match[1], "--memory")
    assert needs.fixed_bytes + piece + JITTER_BYTES <= minimum < needs.fixed_bytes + piece + JITTER_BYTES + MIB
    plan = plan_memory(needs, piece, piece + more, minimum, None)
    assert plan.window_bytes >= piece and plan.minimum_bytes <= minimum
