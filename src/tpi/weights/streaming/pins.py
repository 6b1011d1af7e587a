"""What a window's bytes are for: the pieces that it keeps for good, the ring that others pass through, and slots for
pieces on demand. Pure arithmetic.

Where not everything fits, the pieces that every pass needs come first; pieces on demand share what is left, in slots as
large as the largest of them, but at least as many slots as the caller wants. Only if that leaves too little do pieces
of every pass stream.

A pass reads those in the same order again and again. For such a pattern a fixed resident set is optimal, and
least-recently-used the worst choice. Bytes of the ring are not pinned, so it should be small; but places in it are
contiguous, and where sizes differ two of the largest streamed pieces lose up to a quarter of the time against a ring
without that limit, three a few percent, four nothing. Which pins and which ring waste least is found by playing a pass
through (``pacing``) for some candidates: pins spread evenly over all pieces that may stream, or over the larger ones
only (the paper keeps one FFN in T); larger pieces all pinned, or not.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
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
    """Indexes of the pinned pieces, the bytes that all others of every pass go through, and the ``n_slots`` slots of
    ``slot_bytes`` for those on demand; all fit the budget together."""

    pinned: frozenset[int]
    pinned_bytes: int
    ring_bytes: int
    n_slots: int = 0
    slot_bytes: int = 0

    @property
    def pool_bytes(self) -> int:
        """Of all slots."""
        return self.n_slots * self.slot_bytes

    @property
    def total_bytes(self) -> int:
        """Of pins, ring and slots."""
        return self.pinned_bytes + self.ring_bytes + self.pool_bytes


@dataclass(frozen=True)
class PieceSizes:
    """The pieces of a rank as a window sees them: what each takes of memory, which are on demand, and how many of these
    are wanted at once."""

    sizes: tuple[int, ...]
    on_demand: frozenset[int] = frozenset()
    least_slots: int = 1

    @property
    def total_bytes(self) -> int:
        """With so much everything is pinned."""
        return sum(self.sizes)

    @property
    def minimum_bytes(self) -> int:
        """See ``minimum_budget``."""
        return minimum_budget(self.sizes, self.on_demand, self.least_slots)

    def plan(self, budget_bytes: int) -> "PinPlan":
        """See ``plan_pins``."""
        return plan_pins(self.sizes, budget_bytes, self.on_demand, self.least_slots)


def minimum_budget(sizes: Sequence[int], on_demand: Collection[int] = (), least_slots: int = 1) -> int:
    """The smallest budget with which pieces of these sizes can be used at all, one at a time and without overlap, and
    ``least_slots`` of those with the indexes ``on_demand`` are in memory at once. At least one is, and never more than
    all."""
    largest = max((sizes[index] for index in _cyclic(sizes, on_demand)), default=0)
    slot_bytes, n_least = _least_pool(sizes, on_demand, least_slots)
    return min(sum(sizes), largest + n_least * slot_bytes)


def plan_pins(
    sizes: Sequence[int], budget_bytes: int, on_demand: Collection[int] = (), least_slots: int = 1
) -> PinPlan:
    """The plan for pieces of these sizes in execution order before anything is measured: as if computing took as long
    as reading what does not fit, which is when memory is needed most. Pins are spread evenly. ``on_demand`` and
    ``least_slots`` as for :func:`minimum_budget`.

    Raises:
        MemoryBudgetError: the budget is less than that minimum.
    """
    total = sum(sizes)
    if total <= budget_bytes:
        return PinPlan(frozenset(range(len(sizes))), total, 0)
    cyclic, (slot_bytes, n_least) = _cyclic(sizes, on_demand), _least_pool(sizes, on_demand, least_slots)
    minimum = minimum_budget(sizes, on_demand, least_slots)
    if budget_bytes < minimum:
        experts = f" and {n_least} of those on demand need" if n_least else " needs"
        raise MemoryBudgetError(
            f"a window of {budget_bytes:,} bytes is too small: the largest piece of the weights{experts} {minimum:,}"
        )
    left = budget_bytes - sum(sizes[index] for index in cyclic)
    n_slots = max(n_least, left // slot_bytes) if n_least else 0
    plan = _plan_cyclic(sizes, cyclic, budget_bytes - n_slots * slot_bytes)
    return replace(plan, n_slots=n_slots, slot_bytes=slot_bytes)


def _cyclic(sizes: Sequence[int], on_demand: Collection[int]) -> list[int]:
    """Indexes of the pieces that every pass needs."""
    others = frozenset(on_demand)
    return [index for index in range(len(sizes)) if index not in others]


def _least_pool(sizes: Sequence[int], on_demand: Collection[int], least_slots: int) -> tuple[int, int]:
    """The bytes of a slot, and how many there must be."""
    slot_bytes = max((sizes[index] for index in on_demand), default=0)
    return slot_bytes, min(max(1, least_slots), len(on_demand))


def _plan_cyclic(sizes: Sequence[int], cyclic: Sequence[int], budget_bytes: int) -> PinPlan:
    total = sum(sizes[index] for index in cyclic)
    if total <= budget_bytes:
        return PinPlan(frozenset(cyclic), total, 0)
    streamed, compute_s = (total - budget_bytes) / total, [0.0] * len(sizes)
    for index in cyclic:
        compute_s[index] = sizes[index] * streamed
    times = PassTimes(tuple(compute_s), (0.0,) * len(sizes), 1.0)
    others = frozenset(range(len(sizes))).difference(cyclic)
    return _best(
        list(_candidates(sizes, cyclic, budget_bytes, even_only=True)),
        times,
        lambda plan: wait_s(sizes, times, plan.pinned | others, plan.ring_bytes),
    )


def extra_pins(sizes: Sequence[int], plan: PinPlan, lent_bytes: int, on_demand: Collection[int] = ()) -> list[int]:
    """Pieces of every pass that ``plan`` streams and that memory which is wanted back piece by piece can hold
    meanwhile, the last to be given up first. However many are given up, the others are spread about evenly."""
    streamed = [index for index in _cyclic(sizes, on_demand) if index not in plan.pinned]
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
    sizes: Sequence[int],
    times: PassTimes,
    plan: PinPlan,
    lent: Lent = lambda _: frozenset(),
    on_demand: Collection[int] = (),
) -> PinPlan | None:
    """A plan with the memory of ``plan`` that makes passes of measured ``times`` faster, by enough to repay the reading
    of all that it keeps; None if there is none. The slots for ``on_demand`` stay."""

    def waits_s(plan: PinPlan) -> float:
        return wait_s(sizes, times, plan.pinned.union(lent(plan), on_demand), plan.ring_bytes)

    room = plan.total_bytes - plan.pool_bytes
    best = _best([plan, *_candidates(sizes, _cyclic(sizes, on_demand), room, even_only=False)], times, waits_s)
    now_s = waits_s(plan)
    gain_s = now_s - waits_s(best)
    is_worth = gain_s > max(_WORTH_S, _WORTH * (times.work_s + now_s))
    read_bytes = best.pinned_bytes + sum(sizes[index] for index in lent(best))
    if not is_worth or gain_s * _REPAID_PASSES <= read_bytes / times.bytes_per_s:
        return None
    return replace(best, n_slots=plan.n_slots, slot_bytes=plan.slot_bytes)


def _best(plans: Sequence[PinPlan], times: PassTimes, waits_s: Callable[[PinPlan], float]) -> PinPlan:
    pass_s = [times.work_s + waits_s(plan) for plan in plans]
    limit_s = min(pass_s) * (1 + _TIE)
    return max(
        (plan for plan, plan_s in zip(plans, pass_s, strict=True) if plan_s <= limit_s),
        key=lambda plan: plan.pinned_bytes,
    )


def _candidates(sizes: Sequence[int], cyclic: Sequence[int], budget_bytes: int, even_only: bool) -> Iterator[PinPlan]:
    """Plans for the pieces ``cyclic`` that use all of the budget, the one without pins included."""
    yield PinPlan(frozenset(), 0, budget_bytes)
    classes = _classes([sizes[index] for index in cyclic])
    for number, largest in enumerate(classes):
        streamable = [index for index in cyclic if sizes[index] <= largest]
        fixed = set(cyclic).difference(streamable)
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
