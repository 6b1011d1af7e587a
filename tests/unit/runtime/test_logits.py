"""Parts of rows: what slices tell, put together, is what the whole row says."""

import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.runtime.logits import ALL, Extract, Row, Wanted, extract, highest, join, log_sum_exp

Logits = npt.NDArray[np.float32]

# Few different values, so that equal logits are common.
rows = st.one_of(
    st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40),
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40),
).map(lambda values: np.array(values, np.float32))


def cut(logits: Logits, cuts: list[int], wanted: Wanted) -> list[Extract]:
    """What ranks tell whose slices end at ``cuts``; some may have none of the vocabulary."""
    stops = [0, *sorted(min(cut, logits.size) for cut in cuts), logits.size]
    return [extract(logits[start:stop], start, wanted) for start, stop in itertools.pairwise(stops) if stop > start]


@given(
    rows,
    st.lists(st.integers(0, 40), max_size=4),
    st.integers(1, 50),
    st.lists(st.integers(0, 39), max_size=5),
    st.integers(0, 40),
)
def test_slices_put_together_tell_of_the_whole_row(
    logits: Logits, cuts: list[int], n_best: int, named: list[int], n_tokens: int
) -> None:
    ids = tuple(token for token in named if token < logits.size)
    wanted = Wanted(n_best, ids, n_tokens=min(n_tokens, logits.size))
    parts = cut(logits, cuts, wanted)
    row, tokens = join(parts, wanted), logits[: wanted.n_tokens or None]

    assert row.ids is not None and not row.is_all and row.ids.size == row.values.size
    assert (np.diff(row.ids) > 0).all() and (row.ids < tokens.size).all()
    assert np.array_equal(row.values, tokens[row.ids])
    order = sorted(range(tokens.size), key=lambda token: (-tokens[token], token))
    assert set(order[:n_best]) <= set(row.ids.tolist()), "the best of all are among the best of every slice"
    assert {token for token in ids if token < tokens.size} <= set(row.ids.tolist())
    missing = np.delete(tokens, row.ids)
    assert missing.size == 0 or missing.max() <= row.floor
    if row.floor > -np.inf:
        assert row.floor in row.values and row.floor <= tokens.max()
    assert row.best() == order[0] == Row(tokens).best()
    assert row.log_sum_exp == pytest.approx(math.log(sum(math.exp(float(v)) for v in tokens)), rel=2e-7, abs=2e-7)


@given(rows, st.integers(0, 50))
def test_the_highest_are_kept_and_of_equal_ones_the_first(logits: Logits, n_kept: int) -> None:
    if n_kept == 0:
        return
    order = sorted(range(logits.size), key=lambda index: (-logits[index], index))
    assert highest(logits, n_kept).tolist() == sorted(order[:n_kept])


def test_tokens_may_be_named_in_any_order() -> None:
    logits, wanted = np.array([-1, 0, 0, 5], np.float32), Wanted(1, (2, 0))
    row = join([extract(logits[:2], 0, wanted), extract(logits[2:], 2, wanted)], wanted)
    assert row.ids is not None and (row.ids.tolist(), row.values.tolist()) == ([0, 1, 2, 3], [-1, 0, 0, 5])


def test_a_slice_tells_its_best_with_their_ids() -> None:
    part = extract(np.array([1, 5, 3, 5, 2], np.float32), 100, Wanted(3, (7, 104, 101)))
    assert (part.ids.tolist(), part.values.tolist(), part.is_whole) == ([101, 102, 103], [5, 3, 5], False)
    assert np.isnan(part.asked[0]) and part.asked[1:].tolist() == [2, 5]


def test_a_slice_behind_the_last_token_tells_nothing() -> None:
    """Models may have more rows than their tokenizer has words."""
    wanted = Wanted(2, (5, 6), n_tokens=6)
    logits = np.array([1, 2, 3, 4, 0, -1, 99, 98], np.float32)
    part = extract(logits[6:], 6, wanted)
    assert part.ids.size == 0 and part.is_whole and part.log_sum_exp == -np.inf and np.isnan(part.asked).all()
    row = join([extract(logits[:6], 0, wanted), part], wanted)
    assert row.ids is not None and row.ids.tolist() == [2, 3, 5]
    assert (row.best(), row.floor) == (3, 3.0)
    assert row.log_sum_exp == pytest.approx(log_sum_exp(logits[:6]))


def test_a_row_of_whole_slices_has_no_floor() -> None:
    row = join(cut(np.arange(6, dtype=np.float32), [2], Wanted(4)), Wanted(4))
    assert row.floor == -np.inf and row.values.size == 6


def test_logarithms_do_not_overflow() -> None:
    assert log_sum_exp(np.array([1e4, 1e4], np.float32)) == pytest.approx(1e4 + math.log(2))
    assert log_sum_exp(np.array([-1e4], np.float32)) == -1e4
    assert log_sum_exp(np.array([], np.float32)) == -np.inf
    assert log_sum_exp(np.array([-np.inf, -np.inf])) == -np.inf


def test_all_of_a_row() -> None:
    row = Row(np.array([1, 3, 3], np.float32))
    assert row.is_all and row.best() == 1 and ALL.is_all and not Wanted(1).is_all
