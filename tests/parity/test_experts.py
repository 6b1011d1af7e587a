"""Experts cut and spread among ranks: with the reference's choices the same answer, without them other ones only at
near ties; all ranks choose alike, whoever is perturbed. Random weights."""

from pathlib import Path

import numpy as np
import pytest

from tests.parity.choices import Everywhere, Imposed, Noted, Perturbed, differing
from tests.parity.rig import cluster_logits, range_difference
from tests.variants.all import VARIANTS
from tests.variants.made import N_VOCAB, write_made
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.runtime.experts import Choices, chose_alike, hash_bits
from tpi.runtime.protocols import Float32Array
from tpi.testing.meshes import open_sums

TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, N_VOCAB, 100)]
CHUNKS = [TOKENS[:70], TOKENS[70:80], *([token] for token in TOKENS[80:84])]
WITH_EXPERTS = ("gpt-oss 120B", "gemma4 26B-A4B", "deepseek2 V3", "qwen35moe 35B-A3B")
SHARES = [(1, 1), (3, 2, 2, 1, 1), (1,) * 9]
F32_BOUND = 1e-3


def ranks_logits(
    path: Path,
    shares: tuple[float, ...],
    choices: list[Choices | None],
    payload: PayloadFormat = PayloadFormat.F32,
    algorithm: str = "one-shot",
) -> Float32Array:
    with open_sums(len(shares), ALGORITHMS[algorithm], Scale(payload, 70 * 1024)) as shared:
        parts = cluster_logits(
            path, CHUNKS, shared.ends, shares=shares, n_threads=1, release=shared.abort, choices=choices
        )
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("variant", WITH_EXPERTS)
def test_ranks_with_the_reference_s_choices_equal_one(tmp_path: Path, variant: str) -> None:
    path = write_made(tmp_path / "model.gguf", VARIANTS[variant](), "F32")
    blocks = blocks_of(read_spec(read_gguf(path), ""))
    n_used = next(block.experts.n_used for block in blocks if block.experts is not None)
    noted = Noted()
    one = cluster_logits(path, CHUNKS, [Sums(None, None)], n_threads=1, choices=[noted])[0]
    bound = F32_BOUND
    for shares in SHARES:
        imposed = [Imposed(noted) for _ in shares]
        difference = range_difference(ranks_logits(path, shares, [*imposed]), one)
        contributors = [entry for entry in imposed if entry.own.ids]
        print(f"{variant} {shares}: {difference:.1e}")
        assert difference <= bound
        for apart, differs in differing(noted, contributors[0].own, n_used):
            assert apart < 2 * differs, "other experts only where two were nearly tied"


@pytest.mark.parametrize(
    "algorithm, payload",
    [("star", PayloadFormat.F32), ("one-shot", PayloadFormat.F16), ("two-shot", PayloadFormat.INT8), ("ring", "f16")],
)
def test_all_ranks_follow_the_lowest(tmp_path: Path, algorithm: str, payload: str) -> None:
    """Whoever chooses otherwise; and if it is the lowest, as if all had chosen so."""
    path = write_made(tmp_path / "model.gguf", VARIANTS["gpt-oss 20B"](), "F32")
    blocks = blocks_of(read_spec(read_gguf(path), ""))
    block = [block.index for block in blocks if block.experts is not None][3]
    perturbed = Perturbed(1, block, 4)

    def logits(*choices: Choices | None) -> Float32Array:
        return ranks_logits(path, (1, 1, 1), [*choices], PayloadFormat(payload), algorithm)

    usual = logits(None, None, None)
    assert np.array_equal(logits(None, perturbed, None), usual)
    assert np.array_equal(logits(None, perturbed, Perturbed(1, block, 5)), usual)
    lowest = logits(perturbed, None, None)
    assert np.array_equal(lowest, logits(perturbed, perturbed, perturbed))
    assert not np.array_equal(lowest, usual)


LONG = [TOKENS + TOKENS[:60], TOKENS[:40]]


def long_logits(
    path: Path, shares: tuple[float, ...] | str, n_parts: int, residents: list[bool], choices: list[Choices | None]
) -> Float32Array:
    """Of a pass of 160 rows: in two parts, whose sums another thread carries, or in one."""
    few = 8 * 512
    with open_sums(
        len(residents), ALGORITHMS["one-shot"], Scale(PayloadFormat.F32, 160 * 1024, n_parts), max_few_values=few
    ) as shared:
        parts = cluster_logits(
            path, LONG, shared.ends, shares=shares, n_threads=1, release=shared.abort, choices=choices,
            n_parts=n_parts, is_resident=residents,
        )  # fmt: skip
    return np.concatenate(parts, axis=1)


@pytest.mark.parametrize("residents", [[True, True], [True, False], [False, False]], ids=str)
def test_long_passes_in_two_parts(tmp_path: Path, residents: list[bool]) -> None:
    """Sums of other widths are under way at once, weights are held or streamed, and choices differ in either part."""
    path = write_made(tmp_path / "model.gguf", VARIANTS["gpt-oss 20B"](), "F32")
    usual = long_logits(path, (1, 1), 1, residents, [None, None])
    assert np.array_equal(long_logits(path, (1, 1), 2, residents, [None, None]), usual)
    blocks = [block.index for block in blocks_of(read_spec(read_gguf(path), "")) if block.experts is not None]
    for row in (4, 120):
        perturbed = Everywhere([Perturbed(0, block, row) for block in blocks[:4]])
        assert np.array_equal(long_logits(path, (1, 1), 2, residents, [None, perturbed]), usual)


@pytest.mark.parametrize("layout", ["0-11:0,1 12-23:2", "0-11:0,1 12-23:1,2", "0-11:0,1 12-23:0,1,2 head:*"])
def test_all_ranks_follow_the_lowest_in_every_layout(tmp_path: Path, layout: str) -> None:
    """Also where those that contribute to a sum do not go on with it."""
    path = write_made(tmp_path / "model.gguf", VARIANTS["gpt-oss 20B"](), "F32")
    block = next(b for b in reversed(blocks_of(read_spec(read_gguf(path), ""))) if b.layer == 11)
    usual = long_logits(path, layout, 1, [True] * 3, [None] * 3)
    perturbed = Perturbed(0, block.index, 4)
    assert np.array_equal(long_logits(path, layout, 1, [True] * 3, [None, perturbed, None]), usual)


def test_a_hash_tells_choices_apart() -> None:
    random = np.random.default_rng(0)
    for n_ranks in (2, 3, 9, 64):
        chosen = random.integers(0, 128, (5, 4)).astype(np.int32)
        total = hash_bits(chosen) * n_ranks
        assert chose_alike(total, n_ranks) and chose_alike(total * np.float32(0.9999), n_ranks)
        other = chosen.copy()
        other[3, 1] ^= 1
        assert not chose_alike(hash_bits(chosen) * (n_ranks - 1) + hash_bits(other), n_ranks)
