"""What a sampler asks of a row is enough: the parts of several ranks give the token that the whole row gives."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tpi.engine import sampler as sampler_module
from tpi.engine.sampler import Sampler
from tpi.engine.settings import SamplingSettings
from tpi.errors import NumericError
from tpi.runtime.logits import Row, Wanted, extract, join, log_sum_exp

Logits = npt.NDArray[np.float32]

EVERYTHING = SamplingSettings(temperature=1, top_k=0, top_p=1, min_p=0, seed=1)

settings_of_any_kind = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.one_of(st.just(0), st.integers(1, 60)),
    top_p=st.one_of(st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9, 1.0]), st.floats(0, 1)),
    min_p=st.one_of(st.sampled_from([0.0, 0.05, 0.5, 1.0]), st.floats(0, 1)),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3, 50.0]),
    penalty_window_tokens=st.integers(0, 6),
    typical_p=st.sampled_from([1.0, 1.0, 0.5]),
    dry_multiplier=st.sampled_from([0.0, 0.0, 3.0]),
    dry_allowed_length=st.integers(0, 2),
    xtc_probability=st.sampled_from([0.0, 0.0, 0.5]),
    xtc_threshold=st.sampled_from([0.05, 0.3]),
    seed=st.integers(0, 1000),
)
# Few different values, so that equal ones are common; or many.
coarse_rows = st.lists(st.integers(-12, 12).map(lambda n: n / 2), min_size=1, max_size=60)
fine_rows = st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=60)
rows = st.one_of(coarse_rows, fine_rows).map(lambda values: np.array(values, np.float32))


def joined(logits: Logits, cuts: Sequence[int], wanted: Wanted) -> Row:
    """The row that slices between ``cuts`` make, as a master joins it."""
    stops = [0, *sorted(cuts), logits.size]
    slices = [(start, stop) for start, stop in itertools.pairwise(stops) if stop > start]
    return join([extract(logits[start:stop], start, wanted) for start, stop in slices], wanted)


@given(rows, settings_of_any_kind, st.lists(st.integers(0, 59), max_size=8), st.lists(st.integers(0, 60), max_size=4))
@example(np.zeros(10, np.float32), replace(EVERYTHING, top_p=0.5), [], [1])
@example(np.zeros(32, np.float32), replace(EVERYTHING, top_p=0.5), [], [10])
def test_parts_of_a_row_give_the_same_token(
    logits: Logits, settings: SamplingSettings, recent: list[int], cuts: list[int]
) -> None:
    """Or none, and then the whole row gives it: nothing was drawn meanwhile."""
    recent = [token for token in recent if token < logits.size]
    cuts = [min(cut, logits.size) for cut in cuts]
    for n_nucleus in (1, 3, 20):
        whole, partial = Sampler(settings), Sampler(settings)
        for sampler in (whole, partial):
            sampler.accept(recent)
        with mock.patch.object(sampler_module, "_NUCLEUS", n_nucleus):
            wanted = partial.wanted()
        for _ in range(2):
            expected = whole.sample(Row(logits))
            token = partial.try_sample(Row(logits) if wanted.is_all else joined(logits, cuts, wanted))
            if settings.top_k > 0 or settings.temperature == 0:
                assert token == expected
            assert (token if token is not None else partial.sample(Row(logits))) == expected


@given(rows, settings_of_any_kind, st.data())
def test_parts_of_a_row_give_the_same_allowed_token(
    logits: Logits, settings: SamplingSettings, data: st.DataObject
) -> None:
    """The one that a row of allowed tokens only would give."""
    n = logits.size
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    allowed[data.draw(st.integers(0, n - 1))] = True
    recent = data.draw(st.lists(st.integers(0, n - 1), max_size=8))
    cuts = data.draw(st.lists(st.integers(0, n), max_size=4))
    samplers = alone, whole, partial = Sampler(settings), Sampler(settings), Sampler(settings)
    for sampler in samplers:
        sampler.accept(recent)
    with mock.patch.multiple(sampler_module, _NUCLEUS=3, _MASKED=data.draw(st.sampled_from([1, 8]))):
        wanted = partial.wanted(is_masked=True)
    only = Row(logits[allowed], np.flatnonzero(allowed), log_sum_exp=log_sum_exp(logits[allowed]))
    for _ in range(2):
        expected = whole.sample(Row(logits), allowed)
        token = partial.try_sample(Row(logits) if wanted.is_all else joined(logits, cuts, wanted), allowed)
        assert (token if token is not None else partial.sample(Row(logits), allowed)) == expected
        assert allowed[expected]
        if settings.top_k > 0 or settings.temperature == 0:
            assert alone.try_sample(only) == expected


def test_allowed_tokens_among_the_best_are_enough() -> None:
    logits = np.random.default_rng(1).normal(scale=4, size=5000).astype(np.float32)
    allowed = np.arange(5000) % 2 == 0
    for settings in (SamplingSettings(seed=1, top_k=10), SamplingSettings(temperature=0)):
        sampler = Sampler(settings)
        row = joined(logits, [1000, 2500], sampler.wanted(is_masked=True))
        assert row.ids is not None and row.ids.size == 3 * 64
        assert sampler.try_sample(row, allowed) is not None
        assert sampler.try_sample(row, np.arange(5000) == np.argmin(logits)) is None


@pytest.mark.parametrize(
    ("settings", "recent", "expected"),
    [
        (SamplingSettings(), [1, 2], Wanted(40, ())),
        (SamplingSettings(temperature=0), [], Wanted(1, ())),
        (SamplingSettings(repetition_penalty=1.1), [9, 3, 9], Wanted(42, (3, 9))),
        (SamplingSettings(repetition_penalty=1.1, penalty_window_tokens=1), [9, 3], Wanted(41, (3,))),
        (SamplingSettings(temperature=0, repetition_penalty=1.1), [9, 3], Wanted(3, (3, 9))),
        (SamplingSettings(top_k=0), [], Wanted(256, ())),
        (SamplingSettings(top_k=0, top_p=1.0), [], Wanted(256, ())),
        (SamplingSettings(top_k=0, min_p=0.0), [], Wanted(256, ())),
        (EVERYTHING, [], Wanted(is_exact=False)),
        (replace(EVERYTHING, temperature=0), [], Wanted(1, ())),
        (SamplingSettings(top_k=0, repetition_penalty=1.1), [3], Wanted(is_exact=False)),
        (
            SamplingSettings(repetition_penalty=1.1, penalty_window_tokens=1000),
            list(range(513)),
            Wanted(is_exact=False),
        ),
    ],
)
def test_as_little_is_asked_for_as_will_do(settings: SamplingSettings, recent: list[int], expected: Wanted) -> None:
    sampler = Sampler(settings)
    sampler.accept(recent)
    assert sampler.wanted() == expected


def test_a_peaked_row_needs_no_more_than_its_best() -> None:
    """As they are in practice: the filters end within what is asked for."""
    logits = np.random.default_rng(1).normal(scale=4, size=5000).astype(np.float32)
    settings = SamplingSettings(temperature=1, top_k=0, top_p=0.9, min_p=0.05, seed=3)
    whole, partial = Sampler(settings), Sampler(settings)
    row = joined(logits, [1000, 2500], partial.wanted())
    assert row.ids is not None and row.ids.size == 3 * 256
    tokens = [whole.sample(Row(logits)) for _ in range(50)]
    assert [partial.try_sample(row) for _ in range(50)] == tokens and len(set(tokens)) > 3


def test_a_flat_row_is_needed_whole() -> None:
    logits = np.zeros(5000, np.float32)
    sampler = Sampler(SamplingSettings(top_k=0, top_p=0.9, min_p=0.0))
    assert sampler.try_sample(joined(logits, [2500], sampler.wanted())) is None


def test_a_part_whose_tokens_were_moved_does_not_say_what_top_p_keeps() -> None:
    """The sum of all exponentials is that of the logits before the penalty."""
    sampler = Sampler(SamplingSettings(top_k=0, repetition_penalty=1.3, seed=1))
    row = joined(np.arange(9, dtype=np.float32), [4], Wanted(9))
    assert sampler.try_sample(row) is not None
    sampler.accept([8])
    assert sampler.try_sample(row) is None


def test_a_part_that_is_no_number_is_refused() -> None:
    sampler = Sampler(SamplingSettings())
    row = Row(np.array([1.0, np.nan], np.float32), np.array([3, 7]), 0.5, 2.0)
    with pytest.raises(NumericError, match="1 of 2 logits"):
        sampler.try_sample(row)
