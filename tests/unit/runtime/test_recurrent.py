"""Which slot of a recurrent state is read, written, kept and given up: whatever passes come, are stopped or
repeated."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.errors import ProtocolError
from tpi.runtime.recurrent import RecurrentStates, StateSlots


@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.booleans(), st.booleans()), max_size=60),
)
def test_every_state_is_what_was_written_for_it(
    n_sequences: int, n_kept: int, passes: list[tuple[int, int, bool, bool]]
) -> None:
    """A pass begins where the sequence is, or at a state that is there; some are stopped, and then repeated."""
    slots = StateSlots(n_sequences, n_kept)
    content: dict[int, tuple[int, int]] = {0: (-1, 0)}
    lengths = [0] * n_sequences
    for sequence, back, keep, stops in passes:
        sequence %= n_sequences
        start = slots.latest(sequence, max(0, lengths[sequence] - back))
        for _ in range(1 + stops):
            source, target = slots.begin(sequence, start)
            assert target not in (0, source)
            assert source == 0 if start == 0 else content[source] == (sequence, start)
            content[target] = (sequence, start + 1)
        slots.end(sequence, start + 1, keep)
        lengths[sequence] = start + 1
        for other, length in enumerate(lengths):
            number = slots.find(other, length)
            assert number is not None and (length == 0 or content[number] == (other, length)), "the latest is there"


def test_passes_of_several_sequences_write_to_slots_of_their_own() -> None:
    slots = StateSlots(2, 0)
    (_, one), (_, other) = slots.begin(0, 0), slots.begin(1, 0)
    assert one != other
    slots.end(0, 5, False)
    slots.end(1, 7, False)
    assert slots.find(0, 5) == one and slots.find(1, 7) == other


def test_the_state_that_is_soonest_computed_again_is_given_up_first() -> None:
    """That after a long system prompt stays, whatever turns follow."""
    slots = StateSlots(1, 2)
    for start, stop in [(0, 500), (500, 530), (530, 600), (600, 610), (610, 640)]:
        slots.begin(0, start)
        slots.end(0, stop, keep=True)
    assert [n for n in (500, 530, 600, 610, 640) if slots.find(0, n) is not None] == [500, 600, 640]


def test_of_equals_the_oldest_is_given_up_first() -> None:
    slots = StateSlots(1, 2)
    for number in range(5):
        slots.begin(0, 10 * number)
        slots.end(0, 10 * number + 10, keep=True)
    assert [slots.find(0, 10 * number) is not None for number in range(1, 6)] == [False, True, False, True, True]
    assert slots.latest(0, 49) == 40
    slots.begin(0, 20)
    assert slots.find(0, 40) is not None, "the pass may be stopped"
    slots.end(0, 21, keep=False)
    assert slots.find(0, 40) is None, "what came later is another text now"


def test_a_state_that_is_not_there_is_an_error() -> None:
    slots = StateSlots(1, 1)
    slots.begin(0, 0)
    slots.end(0, 4, False)
    with pytest.raises(ProtocolError, match="no state of sequence 0 after 3 tokens was kept: begin it anew"):
        slots.begin(0, 3)


def test_parts_lie_apart_and_begin_as_zeros() -> None:
    with RecurrentStates({3: (10, 100), 4: (0, 0)}, StateSlots(1, 0)) as states:
        assert 3 in states and 4 not in states and states
        first, second = states.addresses(3, 1)
        assert first % 64 == 0 and second - first == 64
        values = states.values(3, 2)
        assert [part.size for part in values] == [10, 100] and not any(part.any() for part in values)
        values[0][:] = np.arange(10)
        assert not states.values(3, 1)[0].any() and states.values(3, 2)[0][9] == 9
        del values
    states.close()
