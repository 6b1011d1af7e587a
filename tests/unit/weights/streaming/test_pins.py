"""Pins and ring fit the budget together, and pins are spread evenly."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.errors import MemoryBudgetError
from tpi.weights.streaming.pins import PinPlan, extra_pins, minimum_budget, plan_pins
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


@pytest.mark.parametrize(
    ("sizes", "budget", "pinned", "extras"),
    [
        ([5, 16, 4] * 4 + [16, 10], 60, [2, 5, 8, 11], [3, 9, 6, 13]),
        ([2, 5, 3, 2, 5, 3, 2, 5, 3, 4], 20, [2, 5, 8], [0, 6, 3, 9, 1, 7, 4]),
        ([8, 16, 4] * 6, 100, [0, 1, 5, 6, 8, 9, 11, 12, 14, 17], [7, 15]),
        ([7] * 12, 30, [2, 7], [1, 8, 5]),
    ],
)
def test_plans_without_experts_stay_what_they_were(
    sizes: list[int], budget: int, pinned: list[int], extras: list[int]
) -> None:
    """Noted before there were pieces on demand; and those of every pass have the same plan if there are."""
    plan = plan_pins(sizes, budget)
    pinned_bytes = sum(sizes[index] for index in pinned)
    assert plan == PinPlan(frozenset(pinned), pinned_bytes, budget - pinned_bytes)
    assert extra_pins(sizes, plan, 25) == extras
    spread = [size for pair in zip(sizes, [3] * len(sizes), strict=True) for size in pair]
    experts = frozenset(range(1, len(spread), 2))
    plan = plan_pins(spread, budget + 9, experts, 3)
    assert plan == PinPlan(frozenset(2 * n for n in pinned), pinned_bytes, budget - pinned_bytes, 3, 3)
    assert extra_pins(spread, plan, 25, experts) == [2 * n for n in extras]


@given(sizes=sizes_lists, extra=st.integers(0, 3000), least_slots=st.integers(0, 9), data=st.data())
def test_a_plan_with_experts_fits_its_budget(
    sizes: list[int], extra: int, least_slots: int, data: st.DataObject
) -> None:
    experts = data.draw(st.frozensets(st.integers(0, len(sizes) - 1)))
    budget = minimum_budget(sizes, experts, least_slots) + extra
    plan = plan_pins(sizes, budget, experts, least_slots)
    assert plan.total_bytes <= budget
    assert plan.pinned_bytes == sum(sizes[index] for index in plan.pinned)
    if sum(sizes) <= budget:
        assert plan == PinPlan(frozenset(range(len(sizes))), sum(sizes), 0)
        return
    dense = [size for index, size in enumerate(sizes) if index not in experts]
    streamed = [size for index, size in enumerate(sizes) if index not in experts | plan.pinned]
    assert not plan.pinned & experts and plan.ring_bytes >= max(streamed, default=0)
    assert plan.slot_bytes == max((sizes[index] for index in experts), default=0)
    least = min(max(1, least_slots), len(experts))
    assert least <= plan.n_slots <= len(experts)
    if streamed:
        assert plan.n_slots == least, "what every pass needs comes first"
        assert sum(dense) > budget - plan.pool_bytes
    else:
        assert plan.ring_bytes == 0 and budget - plan.total_bytes < max(1, plan.slot_bytes)


def test_the_minimum_with_experts() -> None:
    assert minimum_budget([5, 3, 3, 3], {1, 2, 3}) == 8
    assert minimum_budget([5, 3, 3, 3], {1, 2, 3}, 2) == 11
    assert minimum_budget([5, 3, 3, 3], {1, 2, 3}, 9) == 14
    assert minimum_budget([5, 1, 9], {1, 2}, 2) == 15, "no more than everything"
    assert minimum_budget([4, 4], {0, 1}) == 4
    with pytest.raises(MemoryBudgetError, match="and 2 of those on demand need 11"):
        plan_pins([5, 3, 3, 3], 10, {1, 2, 3}, 2)
