"""What is kept of a row, and what is taken from its logits, is what llama.cpp's own samplers keep and take."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest

from tests.models import write_random_model
from tpi.engine.dry import BreakerFinder, penalties
from tpi.engine.sampler import Sampler, _allowed
from tpi.engine.settings import SamplingSettings
from tpi.engine.vocabulary import Vocabulary
from tpi.runtime.logits import Row

Logits = npt.NDArray[np.float32]
OPEN = SamplingSettings(temperature=1, top_k=0, top_p=1, min_p=0, seed=1)
BREAKERS = ("\n", ":", "w1", "w12 w3")


@contextmanager
def freed(sampler: Any) -> Iterator[Any]:
    assert sampler
    try:
        yield sampler
    finally:
        llama_cpp.llama_sampler_free(sampler)


def applied(sampler: Any, logits: Logits) -> dict[int, float]:
    """The tokens that llama.cpp's sampler leaves, with their logits."""
    data = (llama_cpp.llama_token_data * logits.size)()
    for token, logit in enumerate(logits.tolist()):
        data[token] = llama_cpp.llama_token_data(token, logit, 0.0)
    row = llama_cpp.llama_token_data_array(data, logits.size, -1, False)
    llama_cpp.llama_sampler_apply(sampler, ctypes.byref(row))
    return {row.data[place].id: row.data[place].logit for place in range(row.size)}


def rows(n_rows: int) -> Iterator[Logits]:
    for seed in range(n_rows):
        dice = np.random.default_rng(seed)
        yield dice.normal(scale=dice.uniform(0.5, 5), size=dice.integers(2, 200)).astype(np.float32)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.95])
def test_typical(p: float) -> None:
    sampler = Sampler(SamplingSettings(temperature=1, top_k=0, top_p=1, min_p=0, typical_p=p))
    with freed(llama_cpp.llama_sampler_init_typical(p, 1)) as theirs:
        for logits in rows(60):
            kept = sampler._filtered(logits, _allowed(Row(logits), None))
            assert kept is not None and set(kept.tolist()) == set(applied(theirs, logits))


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3, 0.6])
def test_xtc(threshold: float) -> None:
    settings = SamplingSettings(temperature=1, top_k=0, xtc_probability=1, xtc_threshold=threshold)
    n_left_out = 0
    with freed(llama_cpp.llama_sampler_init_xtc(1.0, threshold, 1, 1)) as theirs:
        for logits in rows(60):
            kept = Sampler(settings)._without_top(logits, np.arange(logits.size))
            assert set(kept.tolist()) == set(applied(theirs, logits))
            n_left_out += logits.size - len(kept)
    assert bool(n_left_out) == (threshold <= 0.5)


@pytest.mark.parametrize("breakers", [(), BREAKERS])
@pytest.mark.parametrize("allowed_length", [0, 1, 2, 4])
def test_dry(tmp_path: Path, breakers: tuple[str, ...], allowed_length: int) -> None:
    settings = SamplingSettings(
        dry_multiplier=0.8, dry_allowed_length=allowed_length, dry_window_tokens=60, dry_breakers=breakers
    )
    n_taken = 0
    with Vocabulary(write_random_model(tmp_path / "model.gguf")) as vocabulary:
        found = BreakerFinder(vocabulary).find(breakers)
        texts = (ctypes.c_char_p * max(1, len(breakers)))(*(text.encode() for text in breakers))
        for seed in range(40):
            dice = np.random.default_rng(seed)
            first = 262 if seed % 2 else 3  # words, or bytes
            tokens = (first + dice.integers(0, 6, size=80)).tolist() + ([first] * 30 if seed % 5 == 0 else [])
            arguments = vocabulary._vocab, 0.8, 1.75, allowed_length, 60, texts, len(breakers)
            with freed(llama_cpp.llama_sampler_init_dry(*arguments)) as theirs:
                for token in tokens:
                    llama_cpp.llama_sampler_accept(theirs, token)
                left = applied(theirs, np.zeros(vocabulary.n_tokens, np.float32))
            taken = penalties(settings, found, tokens)
            assert {token: -logit for token, logit in left.items() if logit} == pytest.approx(taken, rel=1e-5)
            n_taken += len(taken)
    assert n_taken, "some repeat"


def test_all_filters_one_after_the_other() -> None:
    """Whatever the whole chain of llama.cpp leaves is what can be drawn."""
    settings = SamplingSettings(
        temperature=0.8, top_k=30, top_p=0.9, min_p=0.02, typical_p=0.97, xtc_probability=1, xtc_threshold=0.2
    )
    with freed(llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())) as chain:
        for made in (
            llama_cpp.llama_sampler_init_top_k(30),
            llama_cpp.llama_sampler_init_typical(0.97, 1),
            llama_cpp.llama_sampler_init_top_p(0.9, 1),
            llama_cpp.llama_sampler_init_min_p(0.02, 1),
            llama_cpp.llama_sampler_init_xtc(1.0, 0.2, 1, 1),
        ):
            llama_cpp.llama_sampler_chain_add(chain, made)
        for logits in rows(60):
            sampler = Sampler(settings)
            chosen = sampler._filtered(logits, _allowed(Row(logits), None))
            assert chosen is not None
            assert set(sampler._without_top(logits, chosen).tolist()) == set(applied(chain, logits))
