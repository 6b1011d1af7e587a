"""The sampler against a slow one that is written token by token, as llama.cpp describes its chain."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpi.engine.sampler import Sampler, _allowed
from tpi.engine.settings import SamplingSettings
from tpi.errors import NumericError
from tpi.runtime.logits import Row

Logits = npt.NDArray[np.float32]
PLAIN = SamplingSettings(temperature=1, top_k=0, top_p=1, min_p=0, seed=1)

# Few different values, so that equal logits are common.
logit_rows = st.lists(st.integers(-12, 12).map(lambda n: n / 2), min_size=1, max_size=40).map(
    lambda values: np.array(values, dtype=np.float32)
)
filters = st.builds(
    SamplingSettings,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 50),
    top_p=st.floats(0, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.sampled_from([0.5, 1.0, 1.3]),
    penalty_window_tokens=st.integers(0, 6),
    presence_penalty=st.sampled_from([-1.5, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([-0.5, 0.0, 2.0]),
    logit_bias=st.dictionaries(st.integers(0, 39), st.sampled_from([-100.0, -1.0, 2.5]), max_size=3).map(
        lambda biases: tuple(biases.items())
    ),
    seed=st.just(7),
)


def naive_distribution(logits: Logits, settings: SamplingSettings, recent: list[int]) -> dict[int, float]:
    """Token id to probability, step by step over a sorted list."""
    values = [float(value) for value in logits]
    window = recent[-settings.penalty_window_tokens :] if settings.penalty_window_tokens else []
    for token, bias in settings.logit_bias:
        if token < len(values):
            values[token] += bias
    for token in set(window):
        factor = settings.repetition_penalty
        values[token] = float(np.float32(values[token] / factor if values[token] > 0 else values[token] * factor))
        values[token] -= settings.presence_penalty + settings.frequency_penalty * window.count(token)
    tokens = sorted(range(len(values)), key=lambda token: (-values[token], token))
    if settings.top_k:
        tokens = tokens[: settings.top_k]
    probabilities = softmax([values[token] for token in tokens])
    if settings.top_p < 1:
        total, n_kept = 0.0, 0
        for probability in probabilities:
            total, n_kept = total + probability, n_kept + 1
            if total >= settings.top_p:
                break
        tokens, probabilities = tokens[:n_kept], probabilities[:n_kept]
    tokens = [t for t, p in zip(tokens, probabilities, strict=True) if p >= settings.min_p * probabilities[0]]
    tempered = softmax([values[token] / settings.temperature for token in tokens])
    return dict(zip(tokens, tempered, strict=True))


def softmax(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / sum(weights) for weight in weights]


def near_a_boundary(logits: Logits, settings: SamplingSettings, recent: list[int]) -> bool:
    """Whether a hair's breadth in top-p or min-p changes what is kept: rounding may then decide."""
    kept = [
        set(naive_distribution(logits, replace(settings, top_p=p, min_p=m), recent))
        for p in (max(settings.top_p - 1e-9, 0), min(settings.top_p + 1e-9, 1))
        for m in (max(settings.min_p - 1e-9, 0), min(settings.min_p + 1e-9, 1))
    ]
    return any(other != kept[0] for other in kept)


@given(logit_rows, filters, st.data())
def test_keeps_the_same_tokens_with_the_same_weights(
    logits: Logits, settings: SamplingSettings, data: st.DataObject
) -> None:
    recent = data.draw(st.lists(st.integers(0, logits.size - 1), max_size=8))
    if near_a_boundary(logits, settings, recent):
        return
    sampler = Sampler(settings)
    sampler.accept(recent)
    values = sampler._penalised(np.arange(logits.size), logits)
    ids = sampler._filtered(values, _allowed(Row(logits), None))
    assert ids is not None
    kept = values[ids].astype(np.float64)
    weights = np.exp((kept - kept.max()) / settings.temperature)
    expected = naive_distribution(logits, settings, recent)
    assert set(ids.tolist()) == set(expected)
    for token, weight in zip(ids.tolist(), weights / weights.sum(), strict=True):
        assert weight == pytest.approx(expected[token], rel=1e-5)


@given(logit_rows, st.lists(st.integers(0, 39), max_size=4))
def test_greedy_takes_the_lowest_id_of_the_highest_logits(logits: Logits, recent: list[int]) -> None:
    sampler = Sampler(replace(PLAIN, temperature=0))
    sampler.accept(recent)
    assert sampler.sample(Row(logits)) == logits.tolist().index(logits.max())


def test_greedy_after_the_repetition_penalty() -> None:
    sampler = Sampler(SamplingSettings(temperature=0, repetition_penalty=2.0, penalty_window_tokens=2))
    logits = np.array([-1.0, 3.0, 2.0], dtype=np.float32)
    assert sampler.sample(Row(logits)) == 1
    sampler.accept([1])
    assert sampler.sample(Row(logits)) == 2
    sampler.accept([2, 0])
    assert sampler.sample(Row(logits)) == 1, "token 1 has left the window of two"
    assert logits.tolist() == [-1.0, 3.0, 2.0], "the caller's logits stay as they are"


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(PLAIN)
    counts = np.bincount([sampler.sample(Row(logits)) for _ in range(20_000)], minlength=4) / 20_000
    assert counts == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.015)


def test_same_seed_same_tokens_other_seed_others() -> None:
    logits = np.random.default_rng(3).normal(size=200).astype(np.float32)

    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(replace(PLAIN, seed=seed))
        np.random.seed(0)  # the global generator must not matter
        return [sampler.sample(Row(logits)) for _ in range(50)]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(None) != tokens(None)


def test_reports_the_seed_that_it_drew() -> None:
    first = Sampler(replace(PLAIN, seed=None))
    second = Sampler(replace(PLAIN, seed=first.seed))
    row = Row(np.zeros(1000, dtype=np.float32))
    assert [first.sample(row) for _ in range(9)] == [second.sample(row) for _ in range(9)]


@pytest.mark.parametrize("flat", [False, True])
def test_large_vocabulary_without_top_k(flat: bool) -> None:
    """Top-p ends within the sorted head on peaked logits and beyond it on flat ones."""
    logits = np.random.default_rng(1).normal(scale=0.1 if flat else 4, size=5000).astype(np.float32)
    settings = replace(PLAIN, top_p=0.9)
    ids = Sampler(settings)._filtered(logits, _allowed(Row(logits), None))
    assert ids is not None
    assert (len(ids) > 1024) == flat
    assert ids.tolist() == list(naive_distribution(logits, settings, []))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_refuses_logits_that_are_no_numbers(bad: float) -> None:
    logits = np.zeros(10, dtype=np.float32)
    logits[3] = bad
    with pytest.raises(NumericError, match="1 of 10 logits"):
        Sampler(SamplingSettings()).sample(Row(logits))


def test_what_was_drawn_can_be_taken_back() -> None:
    """Drawing again gives the same, whatever the penalties have seen meanwhile."""
    settings = SamplingSettings(seed=3, repetition_penalty=1.2, dry_multiplier=0.8, xtc_probability=0.5)
    dice = np.random.default_rng(2)
    rows = [Row(dice.normal(size=50).astype(np.float32)) for _ in range(12)]
    sampler = Sampler(settings)

    def draw(rows: list[Row]) -> list[int]:
        tokens = []
        for row in rows:
            tokens.append(sampler.sample(row))
            sampler.accept(tokens[-1:])
        return tokens

    sampler.accept([1, 2, 3, 1, 2])
    draw(rows[:4])
    state = sampler.save()
    first = draw(rows[4:])
    sampler.restore(state)
    assert draw(rows[4:]) == first
    sampler.restore(state)
    assert draw(rows[4:][::-1]) != first[::-1]


@pytest.mark.filterwarnings("error")
def test_next_to_no_temperature_takes_the_best() -> None:
    sampler = Sampler(replace(PLAIN, temperature=1e-320))
    assert sampler.sample(Row(np.array([1, 3, 2], np.float32))) == 1
