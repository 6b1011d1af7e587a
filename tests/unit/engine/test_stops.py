"""Stop strings: the text ends before them, and no part of one is ever shown."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from tpi.engine.stops import StopMatcher

# Two letters make overlaps likely.
texts = st.text("ab", max_size=20)
stop_lists = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def shown(pieces: list[str], stops: list[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops)
    return [*(matcher.push(piece) for piece in pieces), matcher.flush()], matcher.matched


def naive(text: str, stops: list[str]) -> str:
    for end in range(1, len(text) + 1):
        completed = [stop for stop in stops if text[:end].endswith(stop)]
        if completed:
            return text[: end - max(map(len, completed))]
    return text


@given(texts, stop_lists, st.lists(st.integers(0, 20), max_size=6))
def test_any_cutting_gives_the_text_before_the_first_stop(text: str, stops: list[str], places: list[int]) -> None:
    borders = [0, *sorted(min(place, len(text)) for place in places), len(text)]
    pieces = [text[start:end] for start, end in itertools.pairwise(borders)]
    parts, matched = shown(pieces, stops)
    assert "".join(parts) == naive(text, stops)
    assert (matched is not None) == any(re.search(re.escape(stop), text) for stop in stops)


@given(texts, stop_lists)
def test_holds_back_no_more_than_it_must(text: str, stops: list[str]) -> None:
    """What is held after each letter is the beginning of a stop string."""
    matcher = StopMatcher(stops)
    n_shown = 0
    for n_read, letter in enumerate(text, start=1):
        n_shown += len(matcher.push(letter))
        if matcher.matched:
            break
        held = text[n_shown:n_read]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_over_token_borders() -> None:
    assert shown(["Once", "\nUs", "er", ": hello"], ["\nUser:"]) == (["Once", "", "", "", ""], "\nUser:")
    assert shown(["Once", "\nUs", "ual"], ["\nUser:"]) == (["Once", "", "\nUsual", ""], None)


def test_without_stops_everything_passes_at_once() -> None:
    assert shown(["a", "b"], []) == (["a", "b", ""], None)
