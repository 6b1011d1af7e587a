"""The measurement of a window, on a small shard."""

from pathlib import Path

import pytest

from bench.models import RandomModel, write_rank
from bench.shapes import Shape
from bench.streaming import Request
from bench.window import run_alone
from tpi.errors import TpiError

SMALL = Shape("small", 4, 512, 8, 4, 2048, 2000, 512)


def test_figures_fit_each_other(tmp_path: Path) -> None:
    shard = write_rank(RandomModel(SMALL, "q8_0"), 1, (1, 1), tmp_path / "shard")
    figures = run_alone(
        Request(str(shard.path), window_part=0.5, n_cells=256, n_prefill=96, chunk_tokens=64, n_pairs=2)
    )
    assert figures.shard_bytes == shard.n_bytes
    assert figures.pinned_bytes + figures.streamed_bytes_per_token <= shard.n_bytes
    assert 0 < figures.streamed_bytes_per_token < shard.n_bytes
    assert figures.base_rss_bytes + figures.kv_bytes < figures.peak_rss_bytes < 200_000_000
    assert figures.kv_bytes == 2 * 256 * 4 * 2 * 64 * 2
    assert 0 < figures.compute_s <= figures.token_s
    assert figures.rate_ratio > 0 and figures.time_ratio > 0


def test_failures_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TpiError, match=r"the measured process failed: .*cannot read"):
        run_alone(Request(str(tmp_path / "missing")))
