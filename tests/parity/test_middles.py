"""Blocks that stop for a sum and leave the rest to the next one: however passes are computed, and by how many."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.parity.rig import cluster_logits, count_ranks, range_difference
from tests.variants.made import N_VOCAB, normal, write_made
from tests.variants.olmo2 import olmo2
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.flow import flows_of
from tpi.model.partition import Partition, divide, is_whole
from tpi.runtime import sights
from tpi.runtime.protocols import Float32Array
from tpi.runtime.turns import first_per_row
from tpi.testing.meshes import open_sums

CHUNKS = [[int(token) for token in np.random.default_rng(7).integers(3, N_VOCAB, n)] for n in (140, 9, 1, 1)]


def _cluster(
    path: Path, shares: tuple[float, ...] | str, algorithm: str, form: PayloadFormat, n_parts: int
) -> Float32Array:
    with open_sums(count_ranks(shares), ALGORITHMS[algorithm], Scale(form, 140 * 256, n_parts)) as shared:
        parts = cluster_logits(
            path, CHUNKS, shared.ends, shares=shares, n_threads=1, release=shared.abort, n_parts=n_parts
        )
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("is_resident", [False, True])
def test_pieces_and_whole_passes_give_the_same_bits(tmp_path: Path, is_resident: bool) -> None:
    path = write_made(tmp_path / "model.gguf", olmo2(4, 8, 2, window=32), "Q4_0")
    alone = [Sums(None, None)]
    plain = cluster_logits(path, CHUNKS, alone)[0]
    cut = cluster_logits(path, CHUNKS, alone, is_resident=is_resident, piece_bytes=60_000)[0]
    assert np.array_equal(plain, cut)


@pytest.mark.parametrize("algorithm", ["star", "one-shot", "two-shot", "ring", "tree"])
@pytest.mark.parametrize("shares, n_parts", [((1, 1), 2), ((3, 0, 2, 1), 2), ((1,) * 9, 1)])
def test_ranks_equal_one(tmp_path: Path, algorithm: str, shares: tuple[float, ...], n_parts: int) -> None:
    path = write_made(tmp_path / "model.gguf", olmo2(3, 8, 2), "F32")
    one = cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1)[0]
    assert range_difference(_cluster(path, shares, algorithm, PayloadFormat.F32, n_parts), one) < 1e-3


def test_squares_are_summed_in_full(tmp_path: Path) -> None:
    """The sum of the squares of queries, beside which that of the keys would vanish in 8 bits."""
    made = olmo2(3, 8, 2)
    for name, tensor in made.tensors.items():
        if name.endswith("attn_q.weight"):
            made.tensors[name] = replace(tensor, draw=normal(50.0))
    path, plain_path = (
        write_made(tmp_path / f"{name}.gguf", model, "F32")
        for name, model in (("made", made), ("plain", olmo2(3, 8, 2)))
    )
    usual, found = (
        range_difference(
            _cluster(given, (1, 1), "one-shot", PayloadFormat.INT8, 1),
            cluster_logits(given, CHUNKS, [Sums(None, None)], n_threads=1)[0],
        )
        for given in (plain_path, path)
    )
    assert found < 3 * usual


@pytest.mark.parametrize("first, second", [("0=1,1=4,2=3", "0=2,1=4,2=2"), ("0=2,1=4,2=2", "0=1,1=4,2=3")])
def test_layers_may_be_cut_at_other_heads(tmp_path: Path, first: str, second: str) -> None:
    """Of equally many heads, which share their KV heads with other ranks in another way; where all are shared alike,
    they are rows of one kernel's."""
    path = write_made(tmp_path / "model.gguf", olmo2(2, 8, 2), "F32")
    one = cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1)[0]
    layout = f"0:{first} 1:{second} head:*"
    assert range_difference(_cluster(path, layout, "one-shot", PayloadFormat.F32, 1), one) < 1e-3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sights, "fold_of", lambda *_: 1)  # all take the same kernels
        one = cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1)[0]
        assert range_difference(_cluster(path, layout, "one-shot", PayloadFormat.F32, 1), one) < 3e-4


def test_both_halves_lie_on_the_same_ranks(tmp_path: Path) -> None:
    gguf = read_gguf(write_made(tmp_path / "model.gguf", olmo2(2, 8, 8)))
    blocks = blocks_of(read_spec(gguf, "test"))
    partition, other = divide(blocks, [2, 0, 1]), divide(blocks, [1, 0, 2])
    assert is_whole(blocks, partition) and is_whole(blocks, other)
    heads, attention, after, *_ = flows_of(blocks, partition)
    assert heads.is_exact and heads.receivers == heads.contributors == (0, 2)
    assert not attention.is_exact and after.is_own
    both = (*other.shares[:2], *partition.shares[2:])
    assert is_whole(blocks, Partition(3, both))
    for mixed in ((both[0], *partition.shares[1:]), (partition.shares[0], both[1], *partition.shares[2:])):
        assert not is_whole(blocks, Partition(3, mixed))


def test_no_row_goes_before_the_next_block_has_it(tmp_path: Path) -> None:
    gguf = read_gguf(write_made(tmp_path / "model.gguf", olmo2(2, 8, 2)))
    blocks = list(blocks_of(read_spec(gguf, "test")))
    last = max(block.index for block in blocks if block.looks_back)
    assert first_per_row(blocks) == last + 2
    blocks[last] = replace(blocks[last], leaves=blocks[last - 1].leaves)
    blocks[last + 1] = replace(blocks[last + 1], is_own=False)
    assert first_per_row(blocks) == last + 2
