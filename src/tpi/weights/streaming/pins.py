"""Which pieces a window keeps for good and how much memory the others pass through. Pure arithmetic.

A pass reads all pieces in the same order again and again. For such a pattern a fixed resident set is optimal, and
least-recently-used the worst choice. Bytes of the ring are not pinned, so it should be small; but places in it are
contiguous, and where sizes differ two of the largest streamed pieces lose up to a quarter of the time against a ring
without that limit, three a few percent, four nothing. Which pins and which ring waste least is found by playing a pass
through (``pacing``) for some candidates: pins spread evenly over all pieces that may stream, or over the larger ones
only (the paper keeps one FFN in T); larger pieces all pinned, or not.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tpi.errors import MemoryBudgetError
from tpi.weights.streaming.pacing import PassTimes, wait_s

_RINGS = (2.0, 2.5, 3.0, 4.0)
"""Sizes of the ring to try, in pieces as large as the largest that streams."""
_SAME_CLASS = 1.1
"""Sizes that differ by less are as good as equal."""
_TIE = 0.005
"""Of plans that differ by less of a pass, the one that reads least is best."""
_WORTH = 0.02
"""The part of a pass by which another plan must be faster to replace one in use,"""
_WORTH_S = 0.005
"""the seconds, because less is noise,"""
_REPAID_PASSES = 100
"""and the passes within which it must save the time to read its pins."""


@dataclass(frozen=True)
class PinPlan:
    """Indexes of the pinned pieces, and the bytes for all others; both fit the budget together."""

    pinned: frozenset[int]
    pinned_bytes: int
    ring_bytes: int

    @property
    def total_bytes(self) -> int:
        """Of pins and ring."""
        return self.pinned_bytes + self.ring_bytes


def minimum_budget(sizes: Sequence[int]) -> int:
    """The smallest budget with which pieces of these sizes can be used at all, one at a time and without overlap."""
    return max(sizes, default=0)


def plan_pins(sizes: Sequence[int], budget_bytes: int) -> PinPlan:
    """The plan for pieces of these sizes in execution order before anything is measured: as if computing took as long
    as reading what does not fit, which is when memory is needed most. Pins are spread evenly.

    Raises:
        MemoryBudgetError: the budget is less than the largest piece.
    """
    total = sum(sizes)
    if total <= budget_bytes:
        return PinPlan(frozenset(range(len(sizes))), total, 0)
    minimum = minimum_budget(sizes)
    if budget_bytes < minimum:
        raise MemoryBudgetError(
            f"a window of {budget_bytes:,} bytes is too small: the largest piece of the weights needs {minimum:,}"
        )
    streamed = (total - budget_bytes) / total
    times = PassTimes(tuple(size * streamed for size in sizes), (0.0,) * len(sizes), 1.0)
    return _best(
        list(_candidates(sizes, budget_bytes, even_only=True)),
        times,
        lambda plan: wait_s(sizes, times, plan.pinned, plan.ring_bytes),
    )


def extra_pins(sizes: Sequence[int], plan: PinPlan, lent_bytes: int) -> list[int]:
    """Pieces that ``plan`` streams and that memory which is wanted back piece by piece can hold meanwhile, the last to
    be given up first. However many are given up, the others are spread about evenly."""
    streamed = [index for index in range(len(sizes)) if index not in plan.pinned]
    chosen = sorted(_spread(sizes, streamed, lent_bytes))
    n_bits = len(chosen).bit_length()
    return [chosen[rank] for rank in sorted(range(len(chosen)), key=lambda rank: _reversed_bits(rank, n_bits))]


def n_fitting(sizes: Sequence[int], extras: Sequence[int], lent_bytes: int) -> int:
    """How many of ``extras``, from the first on, lent memory holds."""
    return sum(total <= lent_bytes for total in accumulate(sizes[index] for index in extras))


def _reversed_bits(number: int, n_bits: int) -> int:
    return int(f"{number:0{n_bits}b}"[::-1], 2)


Lent = Callable[[PinPlan], Collection[int]]
"""The pieces that a plan streams and lent memory holds now."""


def plan_again(
    sizes: Sequence[int], times: PassTimes, plan: PinPlan, lent: Lent = lambda _: frozenset()
) -> PinPlan | None:
    """A plan with the memory of ``plan`` that makes passes of measured ``times`` faster, by enough to repay the reading
    of all that it keeps; None if there is none."""

    def waits_s(plan: PinPlan) -> float:
        return wait_s(sizes, times, plan.pinned.union(lent(plan)), plan.ring_bytes)

    best = _best([plan, *_candidates(sizes, plan.total_bytes, even_only=False)], times, waits_s)
    now_s = waits_s(plan)
    gain_s = now_s - waits_s(best)
    is_worth = gain_s > max(_WORTH_S, _WORTH * (times.work_s + now_s))
    read_bytes = best.pinned_bytes + sum(sizes[index] for index in lent(best))
    return best if is_worth and gain_s * _REPAID_PASSES > read_bytes / times.bytes_per_s else None


def _best(plans: Sequence[PinPlan], times: PassTimes, waits_s: Callable[[PinPlan], float]) -> PinPlan:
    pass_s = [times.work_s + waits_s(plan) for plan in plans]
    limit_s = min(pass_s) * (1 + _TIE)
    return max(
        (plan for plan, plan_s in zip(plans, pass_s, strict=True) if plan_s <= limit_s),
        key=lambda plan: plan.pinned_bytes,
    )


def _candidates(sizes: Sequence[int], budget_bytes: int, even_only: bool) -> Iterator[PinPlan]:
    """Plans that use all of the budget, the one without pins included."""
    yield PinPlan(frozenset(), 0, budget_bytes)
    classes = _classes(sizes)
    for number, largest in enumerate(classes):
        streamable = [index for index, size in enumerate(sizes) if size <= largest]
        fixed = set(range(len(sizes))) - set(streamable)
        fixed_bytes = sum(sizes[index] for index in fixed)
        for ring in _RINGS:
            room = budget_bytes - fixed_bytes - round(ring * largest)
            if room < 0:
                break
            for above in (0, *([] if even_only else classes[:number])):
                preferred = [index for index in streamable if sizes[index] > above]
                chosen = fixed | _spread(sizes, preferred, room)
                left = room + fixed_bytes - sum(sizes[index] for index in chosen)
                chosen |= _spread(sizes, [index for index in streamable if index not in chosen], left)
                pinned_bytes = sum(sizes[index] for index in chosen)
                yield PinPlan(frozenset(chosen), pinned_bytes, budget_bytes - pinned_bytes)


def _classes(sizes: Sequence[int]) -> list[int]:
    """The largest size of each group of like sizes, ascending."""
    found: list[int] = []
    least = 0
    for size in sorted(set(sizes)):
        if found and size <= least * _SAME_CLASS:
            found[-1] = size
        else:
            found.append(size)
            least = size
    return found


def _spread(sizes: Sequence[int], candidates: Sequence[int], room: int) -> set[int]:
    """Candidates of ``room`` bytes in all, so that each run of them holds about the same share of pinned bytes."""
    total = sum(sizes[index] for index in candidates)
    chosen: set[int] = set()
    left, due = room, 0
    for index in candidates:
        size = sizes[index]
        due += size * room
        if 2 * due >= size * total and size <= left:
            chosen.add(index)
            due -= size * total
            left -= size
    for index in candidates:
        if index not in chosen and sizes[index] <= left:
            chosen.add(index)
            left -= sizes[index]
    return chosen
