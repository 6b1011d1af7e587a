"""N ranks in one process against one rank: random weights, so only logits are compared."""

from pathlib import Path

import numpy as np
import pytest

from tests.cluster.unrounded import write_unrounded
from tests.models import write_random_model
from tests.parity.rig import LAYOUTS, cluster_logits, count_ranks, range_difference
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.runtime.protocols import Float32Array
from tpi.testing.meshes import open_sums

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 320, 90)]
CHUNKS = [TOKENS[:70], TOKENS[70:80], *([token] for token in TOKENS[80:])]
SHARES = [(1, 1), (1, 1, 1), (3, 2, 2, 1), (1, 1, 1, 1, 1), (1,) * 8, (5, 1), (0, 1), (1, 0, 0, 1)]
F16_BOUND = 1e-3
"""Of weights in F16, for which activations are rounded to 16 bits."""
BOUNDS = {PayloadFormat.F32: 1e-4, PayloadFormat.F16: 3e-3, PayloadFormat.INT8: 3e-2}

Shares = tuple[float, ...] | str
QUANTISED: list[Shares] = [
    (1, 1),
    (3, 2, 2, 1),
    (1, 0, 0, 1),
    "0:0 1:1",
    "0:0,1 1:2 head:0,2",
    "0:1 1:0=1,2=3 head:1",
]


def _run(
    path: Path,
    shares: Shares,
    payload: PayloadFormat,
    algorithm: str = "one-shot",
    repack: bool = False,
    is_resident: bool = False,
) -> Float32Array:
    n_ranks = count_ranks(shares)
    with open_sums(n_ranks, ALGORITHMS[algorithm], Scale(payload, 70 * 512)) as shared:
        parts = cluster_logits(
            path,
            CHUNKS,
            shared.ends,
            shares=shares,
            n_threads=1,
            release=shared.abort,
            repack=repack,
            is_resident=is_resident,
        )
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("shares", SHARES, ids=str)
@pytest.mark.parametrize("payload", list(PayloadFormat))
def test_ranks_equal_one(tmp_path: Path, shares: tuple[float, ...], payload: PayloadFormat) -> None:
    path = write_random_model(tmp_path / "model.gguf", types="F32")
    one = cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1)[0]
    many = _run(path, shares, payload)
    assert many.shape == one.shape
    assert range_difference(many, one) <= BOUNDS[payload]


@pytest.mark.parametrize("shares", QUANTISED, ids=str)
@pytest.mark.parametrize("types", ["Q4_0", "Q8_0", "Q4_K"])
@pytest.mark.parametrize(("algorithm", "is_resident"), [("one-shot", True), ("two-shot", False)])
def test_rearranged_quantised_ranks_equal_one(
    tmp_path: Path, shares: Shares, types: str, algorithm: str, is_resident: bool
) -> None:
    """What users run. Sums in another order round some activations to the next of 8 bits; the bound is twice
    what rounding them makes on one device: each of the two answers may be so far from the exact one."""
    path = write_random_model(tmp_path / "model.gguf", types=types, n_embd=512, n_heads=8, n_kv_heads=4, n_ff=1024)
    exact_path = write_unrounded(path, tmp_path / "unrounded.gguf")
    exact = cluster_logits(exact_path, CHUNKS, [Sums(None, None)], n_threads=1)[0]
    one = cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1, repack=True)[0]
    many = _run(path, shares, PayloadFormat.F16, algorithm, repack=True, is_resident=is_resident)
    print(f"{range_difference(many, one):.1e} of {range_difference(one, exact):.1e}")
    assert range_difference(many, one) <= 2 * range_difference(one, exact)


@pytest.mark.parametrize("shares", LAYOUTS, ids=str)
def test_ten_layouts_equal_one(tmp_path: Path, shares: Shares) -> None:
    """Of four layers; the bound as before."""
    path = write_random_model(tmp_path / "model.gguf", types="Q4_0", n_layers=4, n_heads=8, n_kv_heads=4, n_embd=512)
    exact_path = write_unrounded(path, tmp_path / "unrounded.gguf")
    exact = cluster_logits(exact_path, CHUNKS, [Sums(None, None)], n_threads=1)[0]
    one = cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1)[0]
    many = _run(path, shares, PayloadFormat.F16)
    print(f"{range_difference(many, one):.1e} of {range_difference(one, exact):.1e}")
    assert range_difference(many, one) <= 2 * range_difference(one, exact)
    unrounded = _run(exact_path, shares, PayloadFormat.F32)
    assert range_difference(unrounded, exact) <= F16_BOUND


@pytest.mark.parametrize("types", ["Q4_0", "Q8_0", "Q4_K", "F16"])
def test_same_partition_gives_same_bits(tmp_path: Path, types: str) -> None:
    path = write_random_model(tmp_path / "model.gguf", types=types)
    first, second = (_run(path, (3, 2, 2), PayloadFormat.F16) for _ in range(2))
    assert np.array_equal(first, second)
