"""The measurement of a window, on a small shard."""

import json
import os
from pathlib import Path

import pytest

from bench import window
from bench.models import RandomModel, write_rank
from bench.shapes import SHAPES, Shape
from bench.streaming import Request
from bench.window import run_alone
from tpi.errors import DiskSpaceError, TpiError, UsageError

SMALL = Shape("small", 4, 512, 8, 4, 2048, 2000, 512)


def test_figures_fit_each_other(tmp_path: Path) -> None:
    shard = write_rank(RandomModel(SMALL, "q8_0"), 1, (1, 1), tmp_path / "shard")
    figures = run_alone(
        Request(str(shard.path), window_part=0.5, n_cells=256, n_prefill=96, chunk_tokens=64, n_pairs=1)
    )
    assert figures.shard_bytes == shard.n_bytes
    assert figures.pinned_bytes + figures.streamed_bytes_per_token <= shard.n_bytes
    assert 0 < figures.streamed_bytes_per_token < shard.n_bytes
    assert figures.base_rss_bytes + figures.kv_bytes < figures.peak_rss_bytes < 200_000_000
    assert figures.kv_bytes == 2 * 256 * 4 * 2 * 64 * 2
    assert 0 < figures.compute_s <= figures.token_s
    assert figures.rate_ratio == pytest.approx(figures.bare_pass_s / figures.token_s)
    assert figures.time_ratio == pytest.approx(figures.token_s / max(figures.bare_pass_s, figures.compute_s))


def test_failures_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TpiError, match=r"the measured process failed: .*cannot read"):
        run_alone(Request(str(tmp_path / "missing")))


def test_the_cache_has_the_type_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    options = ["--shape", "small", "--quant", "bf16", "--rank", "1/2", "--window", "4MB", "--context", "128"]
    options += ["--prefill", "32", "--pairs", "1", "--threads", "1", "--work", str(tmp_path)]
    figures = [json.loads(next(window.main([*options, "--kv-type", kind])).json()) for kind in ("f16", "Q8_0")]
    assert [run["kv_type"] for run in figures] == ["F16", "Q8_0"]
    n_values = 2 * 128 * 4 * 2 * 64  # of keys and values, cells, layers, heads, each
    assert [run["kv_bytes"] for run in figures] == [n_values * 2, n_values // 32 * 34]
    assert all(run["quantisation"] == "bf16" and run["window_bytes"] == 4_000_000 for run in figures)


def test_a_cache_that_does_not_fit_the_heads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", Shape("small", 1, 320, 4, 2, 512, 2000, 512))
    options = ["--shape", "small", "--quant", "f16", "--rank", "0/2", "--kv-type", "Q8_0", "--work", str(tmp_path)]
    with pytest.raises(UsageError, match=r"not possible: a KV cache .* 80"):
        next(window.main(options))


def test_a_disk_without_room_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 10, 10, 10, 0, 0, 0, 0, 255)))
    with pytest.raises(DiskSpaceError, match=r"needs [0-9,]+ bytes more but its disk has 40,960 free"):
        window.find_rank(RandomModel(SMALL, "bf16"), "1/2", tmp_path)
    assert not list(tmp_path.glob("*.tpishard*"))
