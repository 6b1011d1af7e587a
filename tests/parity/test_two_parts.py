"""Long passes go through a rank in two parts, so that one can be summed while the other is computed: that changes
nothing, whatever a model gives its blocks for every row."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity.rig import cluster_logits, range_difference
from tests.variants.all import SMALL
from tests.variants.made import N_VOCAB, write_made
from tpi.cluster.allreduce.driver import Sums

CHUNKS = [[int(token) for token in np.random.default_rng(7).integers(3, N_VOCAB, n)] for n in (139, 9, 1)]


@pytest.mark.parametrize("is_resident", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_two_parts_equal_one(tmp_path: Path, name: str, is_resident: bool) -> None:
    path = write_made(tmp_path / "model.gguf", SMALL[name](), "F32")
    one, two = (
        cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1, is_resident=is_resident, n_parts=n_parts)[0]
        for n_parts in (1, 2)
    )
    assert range_difference(two, one) <= 1e-6
