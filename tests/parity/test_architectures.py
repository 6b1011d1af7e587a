"""Every variant of every architecture against llama.cpp, and cut among ranks against one rank. Random weights."""

from pathlib import Path

import numpy as np
import pytest

from tests.architectures import N_VOCAB, VARIANTS, write_made
from tests.cluster.unrounded import write_unrounded
from tests.parity.rig import cluster_logits, range_difference, reference_logits
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.testing.meshes import open_sums

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, N_VOCAB, 300)]
CHUNKS = [TOKENS[:250], TOKENS[250:263], *([token] for token in TOKENS[263:270])]
BOUND = 1e-5
OTHER_ORDER = {"command-r": 1e-3}
"""Where llama.cpp adds in an order that no partial sum can have (here FFN, residual, attention). With weights for which
activations are rounded to 8 bits the bound is what that rounding makes in llama.cpp itself."""
SHARES = [(1, 1), (3, 2, 2, 1, 1), (1,) * 9]
F32_BOUND = 1e-3
"""Of weights and payloads in 32 bits: sums in another order, whose last bits change what cells hold in 16."""


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("types", ["F16", "Q4_0"])
@pytest.mark.parametrize("is_resident", [False, True], ids=["pieces", "resident"])
def test_logits_equal_llama_cpp(tmp_path: Path, variant: str, types: str, is_resident: bool) -> None:
    path = write_made(tmp_path / "model.gguf", VARIANTS[variant](), types)
    ours = cluster_logits(path, CHUNKS, [Sums(None, None)], is_resident=is_resident, piece_bytes=110_000)[0]
    reference, bound = reference_logits(path, CHUNKS), OTHER_ORDER.get(variant.split()[0], BOUND)
    if bound > BOUND and types != "F16":
        unrounded = reference_logits(write_unrounded(path, tmp_path / "unrounded.gguf"), CHUNKS)
        bound = range_difference(unrounded, reference)
    print(f"{variant} in {types}: {range_difference(ours, reference):.1e}, bound {bound:.1e}")
    assert range_difference(ours, reference) <= bound


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shares", SHARES, ids=str)
def test_ranks_equal_one(tmp_path: Path, variant: str, shares: tuple[float, ...]) -> None:
    path = write_made(tmp_path / "model.gguf", VARIANTS[variant](), "F32")
    chunks = [TOKENS[:70], TOKENS[70:80], *([token] for token in TOKENS[80:84])]
    one = cluster_logits(path, chunks, [Sums(None, None)], n_threads=1)[0]
    with open_sums(len(shares), ALGORITHMS["one-shot"], Scale(PayloadFormat.F32, 70 * 512)) as shared:
        parts = cluster_logits(path, chunks, shared.ends, shares=shares, n_threads=1, release=shared.abort)
    assert range_difference(np.concatenate(parts, axis=1), one) <= F32_BOUND
