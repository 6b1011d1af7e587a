"""Pins and ring fit the budget together, and pins are spread evenly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.errors import MemoryBudgetError
from tpi.weights.streaming.pins import extra_pins, minimum_budget, plan_pins
from tpi.weights.streaming.ring import Ring

sizes_lists = st.lists(st.integers(1, 50), min_size=1, max_size=60)


@given(sizes=sizes_lists, extra=st.integers(0, 3000))
def test_a_plan_fits_its_budget(sizes: list[int], extra: int) -> None:
    budget = minimum_budget(sizes) + extra
    plan = plan_pins(sizes, budget)
    assert plan.pinned_bytes == sum(sizes[index] for index in plan.pinned)
    assert plan.pinned_bytes + plan.ring_bytes <= budget
    streamed = [size for index, size in enumerate(sizes) if index not in plan.pinned]
    assert plan.ring_bytes >= max(streamed, default=0)
    assert not streamed or sum(streamed) > plan.ring_bytes
    assert bool(streamed) == (sum(sizes) > budget)


@given(sizes=st.lists(st.integers(1, 50), max_size=60), extra=st.integers(0, 3000), lent=st.integers(0, 3000))
def test_lent_memory_holds_more_pieces(sizes: list[int], extra: int, lent: int) -> None:
    plan = plan_pins(sizes, minimum_budget(sizes) + extra)
    extras = extra_pins(sizes, plan, lent)
    assert len(set(extras)) == len(extras) and not plan.pinned & set(extras)
    assert sum(sizes[index] for index in extras) <= lent
    streamed = set(range(len(sizes))) - plan.pinned
    assert lent < sum(sizes[index] for index in streamed) or set(extras) == streamed


def test_what_is_left_of_lent_memory_is_spread_evenly() -> None:
    sizes = [16] * 100
    plan = plan_pins(sizes, 16 * 20)
    extras = extra_pins(sizes, plan, 16 * 64)
    for n_left in (64, 48, 32, 16, 8):
        pinned = plan.pinned | set(extras[:n_left])
        quarters = [sum(index in pinned for index in range(first, first + 25)) for first in (0, 25, 50, 75)]
        assert max(quarters) - min(quarters) <= 3, quarters


@pytest.mark.parametrize("share", (0.1, 0.3, 0.5, 0.7, 0.9))
def test_pins_are_spread_over_the_layers(share: float) -> None:
    sizes = [5, 16, 4] * 80 + [16, 10]
    total = sum(sizes)
    plan = plan_pins(sizes, int(total * share))
    streamed = [size if index not in plan.pinned else 0 for index, size in enumerate(sizes)]
    for quarter in range(4):
        part = sum(streamed[quarter * 60 : quarter * 60 + 60])
        assert part == pytest.approx(sum(streamed) / 4, rel=0.15)


def test_little_that_does_not_fit_streams_in_small_pieces() -> None:
    sizes = [5, 16, 4] * 80
    plan = plan_pins(sizes, sum(sizes) - 100)
    assert {sizes[index] for index in range(len(sizes)) if index not in plan.pinned} == {4}
    assert plan.ring_bytes < 16


def test_the_minimum_is_named() -> None:
    with pytest.raises(MemoryBudgetError, match="1,234,567"):
        plan_pins([5, 1_234_567], 9)


@given(sizes=sizes_lists, n_bytes=st.integers(50, 200), keep=st.integers(0, 5))
def test_ring_places_do_not_overlap(sizes: list[int], n_bytes: int, keep: int) -> None:
    ring, taken = Ring(n_bytes), list[tuple[int, int]]()
    for size in sizes:
        while (offset := ring.try_take(size)) is None:
            ring.give_back()
            taken.pop(0)
        assert 0 <= offset <= n_bytes - size
        assert all(offset + size <= start or stop <= offset for start, stop in taken)
        taken.append((offset, offset + size))
        while len(taken) > keep:
            ring.give_back()
            taken.pop(0)


def test_an_empty_ring_has_room_for_all_of_it() -> None:
    ring = Ring(10)
    for _ in range(3):
        assert ring.try_take(7) == 0
        assert ring.try_take(4) is None
        ring.give_back()
    assert ring.try_take(10) == 0
