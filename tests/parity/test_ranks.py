"""N ranks in one process against one rank: random weights, so only logits are compared."""

from pathlib import Path

import numpy as np
import pytest

from tests.models import write_random_model
from tests.parity.rig import cluster_logits, range_difference
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.allreduce.solo import SoloAllreduce
from tpi.runtime.protocols import Float32Array
from tpi.testing.allreduce import ThreadAllreduce

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, 320, 90)]
CHUNKS = [TOKENS[:70], TOKENS[70:80], *([token] for token in TOKENS[80:])]
SHARES = [(1,), (1, 1), (1, 1, 1), (3, 2, 2, 1), (1, 1, 1, 1, 1), (1,) * 8, (5, 1), (0, 1), (1, 0, 0, 1)]


def _run(path: Path, weights: tuple[float, ...], payload: PayloadFormat) -> Float32Array:
    shared = ThreadAllreduce(len(weights), payload, 70 * 256)
    parts = cluster_logits(path, CHUNKS, shared.ends(), weights=weights, n_threads=1, release=shared.abort)
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("weights", SHARES, ids=str)
@pytest.mark.parametrize("payload", list(PayloadFormat))
def test_ranks_equal_one(tmp_path: Path, weights: tuple[float, ...], payload: PayloadFormat) -> None:
    path = write_random_model(tmp_path / "model.gguf", types="F32")
    one = cluster_logits(path, CHUNKS, [SoloAllreduce()], n_threads=1)[0]
    many = _run(path, weights, payload)
    assert many.shape == one.shape
    assert range_difference(many, one) <= (1e-4 if payload is PayloadFormat.F32 else 3e-3)


@pytest.mark.parametrize("types", ["Q4_0", "Q8_0", "Q4_K", "F16"])
def test_same_partition_gives_same_bits(tmp_path: Path, types: str) -> None:
    path = write_random_model(tmp_path / "model.gguf", types=types)
    first, second = (_run(path, (3, 2, 2), PayloadFormat.F16) for _ in range(2))
    assert np.array_equal(first, second)
