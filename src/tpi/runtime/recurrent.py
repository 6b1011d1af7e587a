"""Recurrent states of one rank: of every sequence the one that its next pass begins with, and some that were kept to go
back to.

A pass reads a state from one slot and writes the next into another, and nothing is given up before it is through: a
pass that was stopped leaves everything as it was, and can be repeated. Which slot is read follows from how many tokens
the pass says that the sequence has. Which slots are given up follows from the passes alone, and is the same on all
ranks. Owns the memory. One thread.
"""

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tpi.errors import ProtocolError
from tpi.runtime.kvcache import reserve
from tpi.runtime.protocols import Float32Array

_FLOAT_BYTES = 4
_ZEROS = 0
"""The slot that is never written: how every sequence begins."""
N_WORKING = 2
"""Slots that a sequence needs at least."""


@dataclass(frozen=True)
class StateMark:
    """A state after ``n_tokens`` of a sequence is there; ``is_kept``: to go back to."""

    n_tokens: int
    is_kept: bool


@dataclass
class _Slot:
    sequence: int
    n_tokens: int
    is_kept: bool = False
    age: int = 0


@dataclass(frozen=True)
class _Begun:
    """A pass: the slots that it reads and writes, and how many tokens came before."""

    source: int
    target: int
    n_tokens: int


class StateSlots:
    """Which slot holds what; ``n_kept`` for each of ``n_sequences`` may be kept. Pure bookkeeping, no memory."""

    def __init__(self, n_sequences: int, n_kept: int) -> None:
        self.n_slots = 1 + n_sequences * (N_WORKING + n_kept)
        self._slots: dict[int, _Slot] = {}
        self._passes: dict[int, _Begun] = {}
        """By sequence, what its latest pass began with."""
        self._n_per_sequence = N_WORKING + n_kept
        self._clock = 0

    def find(self, sequence: int, n_tokens: int) -> int | None:
        """The slot with the sequence's state after its first ``n_tokens``."""
        if n_tokens == 0:
            return _ZEROS
        found = (
            number for number, slot in self._slots.items() if slot.sequence == sequence and slot.n_tokens == n_tokens
        )
        return next(found, None)

    def kept(self, sequence: int, n_tokens: int) -> int:
        """As ``find``.

        Raises:
            ProtocolError: no state after so many tokens was kept.
        """
        found = self.find(sequence, n_tokens)
        if found is None:
            raise ProtocolError(f"no state of sequence {sequence} after {n_tokens} tokens was kept: begin it anew")
        return found

    def latest(self, sequence: int, n_tokens: int) -> int:
        """After how many tokens, at most ``n_tokens``, a state of the sequence is there to go on from."""
        return max(
            (s.n_tokens for s in self._slots.values() if s.sequence == sequence and s.n_tokens <= n_tokens), default=0
        )

    def begin(self, sequence: int, n_tokens: int) -> tuple[int, int]:
        """The slots that a pass of the sequence reads and writes when ``n_tokens`` came before; raises as ``kept``."""
        source = self.kept(sequence, n_tokens)
        self._passes.pop(sequence, None)
        target = self._take()
        self._passes[sequence] = _Begun(source, target, n_tokens)
        return source, target

    def end(self, sequence: int, n_tokens: int, keep: bool) -> None:
        """The sequence's latest pass is through: it has written the state after ``n_tokens``, to be kept or not. What
        was computed of other tokens that came later before is forgotten."""
        begun = self._passes.pop(sequence)
        for number, slot in list(self._slots.items()):
            is_over = slot.n_tokens > begun.n_tokens or not slot.is_kept
            if slot.sequence == sequence and number != begun.source and is_over:
                del self._slots[number]
        self._clock += 1
        self._slots[begun.target] = _Slot(sequence, n_tokens, keep, self._clock)
        self._make_room(sequence, begun.target)

    def copy(self, source: int, target: int, n_tokens: int) -> tuple[int, int]:
        """The slots from which, and to which, the state of ``source`` after ``n_tokens`` is copied, for ``target``, of
        which everything else is forgotten; raises as ``kept``."""
        found = self.kept(source, n_tokens)
        self._forget(target)
        if found == _ZEROS:
            return _ZEROS, _ZEROS
        copied = self._take()
        self._clock += 1
        self._slots[copied] = _Slot(target, n_tokens, True, self._clock)
        return found, copied

    def marks(self, sequence: int, n_tokens: int) -> tuple[StateMark, ...]:
        """The states of the sequence that are there, up to the one after ``n_tokens``, the shortest first."""
        found = (slot for slot in self._slots.values() if slot.sequence == sequence and slot.n_tokens <= n_tokens)
        return tuple(StateMark(slot.n_tokens, slot.is_kept) for slot in sorted(found, key=lambda slot: slot.n_tokens))

    @property
    def n_most(self) -> int:
        """So many states a sequence may have between passes."""
        return self._n_per_sequence - 1

    def place(self, sequence: int, marks: Sequence[StateMark]) -> list[int]:
        """Slots for states of the sequence, of which everything else is forgotten.

        Raises:
            ProtocolError: they are more than it may have between passes.
        """
        if len(marks) > self.n_most:
            raise ProtocolError(f"{len(marks)} states of a sequence, at most {self.n_most} are kept")
        self._forget(sequence)
        found = []
        for mark in marks:
            self._clock += 1
            found.append(self._take())
            self._slots[found[-1]] = _Slot(sequence, mark.n_tokens, mark.is_kept, self._clock)
        return found

    def forget(self) -> None:
        """All of it."""
        self._slots.clear()
        self._passes.clear()

    def _forget(self, sequence: int) -> None:
        for number in [number for number, slot in self._slots.items() if slot.sequence == sequence]:
            del self._slots[number]
        self._passes.pop(sequence, None)

    def _make_room(self, sequence: int, latest: int) -> None:
        """Leaves a slot for the next pass: if the sequence has all that it may have, it gives up one that is not to be
        kept, or the one without which the fewest tokens have to be computed again to go back to where it is, of equals
        the one that was written longest ago."""
        own = {number: slot for number, slot in self._slots.items() if slot.sequence == sequence}

        def loss(number: int) -> tuple[bool, int, int]:
            slot = own[number]
            before = (other.n_tokens for other in own.values() if other.n_tokens < slot.n_tokens)
            return slot.is_kept, slot.n_tokens - max(before, default=0), slot.age

        if len(own) == self._n_per_sequence:
            del self._slots[min((number for number in own if number != latest), key=loss)]

    def _take(self) -> int:
        """A free slot."""
        taken = self._slots.keys() | {begun.target for begun in self._passes.values()}
        return next(number for number in range(1, self.n_slots) if number not in taken)


class RecurrentStates:
    """The memory: ``sizes`` of every block says how many values each part of its state has. A context manager;
    ``close`` is idempotent."""

    def __init__(self, sizes: Mapping[int, Sequence[int]], slots: StateSlots) -> None:
        """Raises:
        MemoryBudgetError: the system does not give so much memory.
        """
        self.slots = slots
        self._sizes = {block: tuple(parts) for block, parts in sizes.items() if any(parts)}
        self._maps: dict[int, mmap.mmap] = {}
        self._addresses: dict[int, int] = {}
        for block, parts in self._sizes.items():
            memory = self._maps[block] = reserve(slots.n_slots * _stride(parts))
            self._addresses[block] = ctypes.addressof(ctypes.c_char.from_buffer(memory))

    def __enter__(self) -> "RecurrentStates":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._addresses.clear()
        self._maps.clear()

    @property
    def n_bytes(self) -> int:
        """What all slots take."""
        return sum((self.slots.n_slots - 1) * _stride(parts) for parts in self._sizes.values())

    def __contains__(self, block: int) -> bool:
        return block in self._addresses

    def __bool__(self) -> bool:
        return bool(self._sizes)

    def addresses(self, block: int, slot: int) -> tuple[int, ...]:
        """Where the parts of the block's state lie in a slot."""
        place = self._addresses[block] + slot * _stride(self._sizes[block])
        found = []
        for size in self._sizes[block]:
            found.append(place)
            place += _aligned(size)
        return tuple(found)

    def views(self, slot: int) -> list[memoryview]:
        """The memory itself of all blocks' states in a slot; valid until ``close``."""
        strides = ((block, _stride(parts)) for block, parts in self._sizes.items())
        return [memoryview(self._maps[block])[slot * n_bytes : (slot + 1) * n_bytes] for block, n_bytes in strides]

    def copy(self, source: int, target: int) -> None:
        """Copies all blocks' states from slot to slot."""
        for block, parts in self._sizes.items():
            stride, memory = _stride(parts), self._maps[block]
            memory[target * stride : (target + 1) * stride] = memory[source * stride : (source + 1) * stride]

    def values(self, block: int, slot: int) -> list[Float32Array]:
        """The parts themselves, f32; for tests."""
        place, found = slot * _stride(self._sizes[block]), list[Float32Array]()
        for size in self._sizes[block]:
            found.append(np.frombuffer(self._maps[block], np.float32, size, place))
            place += _aligned(size)
        return found


def _aligned(n_values: int) -> int:
    return -(-_FLOAT_BYTES * n_values // 64) * 64


def _stride(parts: Sequence[int]) -> int:
    """Bytes of a slot, whole pages: one that is never written costs nothing."""
    return -(-sum(map(_aligned, parts)) // mmap.PAGESIZE) * mmap.PAGESIZE
