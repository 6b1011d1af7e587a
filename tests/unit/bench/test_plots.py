"""The pictures, of a small shard: what is measured for them, and that they are drawn."""

import json
from itertools import pairwise
from pathlib import Path

import pytest

from bench import plots
from bench.models import RandomModel, write_rank
from bench.shapes import SHAPES, Shape
from bench.timeline import Play, record
from tpi.errors import TpiError, UsageError

SMALL = Shape("small", 4, 512, 8, 4, 2048, 2000, 512)


def in_large_pages(path: Path) -> str:
    """The text of a file; what the kernel counts in pages there, as if each had 64 KiB."""
    text = path.open().read()
    return " ".join(str(int(word) // 16) for word in text.split()) if path.name == "statm" else text


def test_a_timeline_accounts_for_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", in_large_pages)
    shard = write_rank(RandomModel(SMALL, "q8_0"), 1, (1, 1), tmp_path / "shard")
    play = Play(str(shard.path), 4_000_000, n_cells=128, n_prefill=64, chunk_tokens=32, n_tokens=3, sum_s=0.005)
    timeline = record(play)
    played = timeline.played
    assert [phase.name for phase in played.phases] == ["start", "open", "prefill", "decode", "token", "token", "end"]
    assert all(first.at_s < second.at_s for first, second in pairwise(played.phases))
    sums = {sum(use[1:]) for use in played.uses}
    assert len(sums) == 1 and 3_900_000 < sums.pop() <= 4_000_000
    most = max(n_bytes for _, n_bytes in timeline.resident)
    assert played.peak_rss_bytes * 0.8 < most <= played.peak_rss_bytes * 1.02


def test_failures_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(TpiError, match=r"the measured process failed: .*cannot read"):
        record(Play(str(tmp_path / "missing"), 1))


def test_pictures_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    options = ["--shape", "small", "--rank", "0/2", "--window", "3MB", "--context", "96", "--prefill", "32"]
    options += ["--tokens", "2", "--points", "3", "--pairs", "1", "--threads", "1"]
    reports = list(plots.main([*options, "--work", str(tmp_path), "--out", str(tmp_path / "out")]))
    for name in ("memory-over-time", "token-against-memory"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / "out" / f"{name}.svg").read_text()[-20:]
    figures = [json.loads(report.json()) for report in reports]
    streamed = [line["streamed_bytes_per_token"] for line in figures if "bound_ratio" in line]
    assert len(streamed) == 3 and streamed == sorted(streamed, reverse=True) and streamed[-1] == 0


def test_budgets_go_from_the_least_to_the_most() -> None:
    assert plots.budgets_between(10, 1000, 3) == [10, 100, 1000]
    assert plots.budgets_between(10, 1000, 2) == [10, 1000]


def test_a_context_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="context"):
        list(plots.main(["--out", str(tmp_path), "--context", "16"]))
