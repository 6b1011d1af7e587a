"""One rank's logits against llama.cpp on the same random-weight files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import Q4_K_M, write_random_model
from tests.parity.rig import cluster_logits, range_difference, reference_logits
from tpi.cluster.allreduce.driver import Sums
from tpi.gguf.types import TYPES_BY_NAME
from tpi.weights.layout import PIECE_BYTES

BOUND = 1e-5

SHAPES: dict[str, dict[str, Any]] = {
    "mixture": {"types": Q4_K_M},
    "full attention": {"n_kv_heads": 4, "types": "Q8_0"},
    "one KV head": {"n_kv_heads": 1, "types": "Q8_0"},
    "head of 128": {"head_dim": 128, "types": "Q4_0"},
    "heads wider than the model": {"n_heads": 6, "n_kv_heads": 3, "types": "Q8_0"},
    "tied": {"tied": True, "types": "Q8_0"},
    "tied mixture": {"tied": True, "types": {"*": "Q4_K", "token_embd": "Q6_K"}},
    "rope factors": {"rope_factors": True, "types": "Q8_0"},
    "rope linear": {"rope_scaling": ("linear", 4.0), "types": "F16"},
    "rope yarn": {"rope_scaling": ("yarn", 4.0), "types": "F16"},
    "split": {"split": 3, "types": "Q8_0"},
}


def _chunks(n_vocab: int) -> list[list[int]]:
    """A prefill that takes the tiled kernels, one that does not, and single tokens; past 256 cells."""
    tokens = [int(token) for token in np.random.default_rng(5).integers(3, n_vocab, 300)]
    return [tokens[:250], tokens[250:263], *([token] for token in tokens[263:270])]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_logits_equal_llama_cpp(tmp_path: Path, shape: dict[str, Any]) -> None:
    path = write_random_model(tmp_path / "model.gguf", n_vocab=517, n_ff=768, **shape)
    chunks = _chunks(517)
    ours = cluster_logits(path, chunks, [Sums(None, None)])[0]
    assert range_difference(ours, reference_logits(path, chunks)) <= BOUND


@pytest.mark.parametrize("types", ["Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4", "Q8_0"])
@pytest.mark.parametrize("piece_bytes", [PIECE_BYTES, 110_000])
def test_rearranged_weights_equal_llama_cpp(tmp_path: Path, types: str, piece_bytes: int) -> None:
    path = write_random_model(tmp_path / "model.gguf", n_vocab=512, n_ff=768, types=types)
    chunks = _chunks(512)
    ours = cluster_logits(path, chunks, [Sums(None, None)], repack=True, piece_bytes=piece_bytes)[0]
    assert range_difference(ours, reference_logits(path, chunks, repack=True)) <= BOUND


@pytest.mark.parametrize("kv_type", ["Q8_0", "Q4_0"])
def test_a_quantised_cache_equals_llama_cpp(tmp_path: Path, kv_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # llama.cpp turns the heads of quantised caches by a Hadamard matrix unless it is told not to.
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    path = write_random_model(tmp_path / "model.gguf", types="Q4_0")
    chunks = _chunks(320)
    kind = TYPES_BY_NAME[kv_type]
    ours = cluster_logits(path, chunks, [Sums(None, None)], kv_type=kind)[0]
    assert range_difference(ours, reference_logits(path, chunks, kv_type=kind)) <= BOUND


@pytest.mark.parametrize("types", ["F16", "Q4_0", "Q4_K", "Q8_0"])
def test_piece_size_changes_nothing(tmp_path: Path, types: str) -> None:
    path = write_random_model(tmp_path / "model.gguf", n_vocab=512, n_ff=768, types=types, rope_factors=True)
    chunks = _chunks(512)
    whole, cut = (cluster_logits(path, chunks, [Sums(None, None)], piece_bytes=size)[0] for size in (1 << 24, 110_000))
    assert np.array_equal(whole, cut)


@pytest.mark.parametrize("types", ["F16", "Q4_0", "Q4_K", "Q8_0"])
def test_resident_weights_change_nothing(tmp_path: Path, types: str) -> None:
    """Whole blocks, and for single tokens the whole model, run as one graph where everything stays in memory."""
    path = write_random_model(tmp_path / "model.gguf", n_vocab=512, n_ff=768, types=types, rope_factors=True)
    chunks = _chunks(512)
    held, resident = (
        cluster_logits(path, chunks, [Sums(None, None)], piece_bytes=110_000, repack=True, is_resident=is_resident)[0]
        for is_resident in (False, True)
    )
    assert np.array_equal(held, resident)
