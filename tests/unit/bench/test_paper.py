"""The paper's rows on small models: everything real, and one rank of several."""

import json
from pathlib import Path

import pytest

from bench import paper
from bench.shapes import SHAPES, Shape
from bench.sums import SumKind, measure_sums
from bench.testbed.testbed import Device, Testbed, can_emulate
from tests.cluster.commands import LONG_FORM
from tpi.errors import UsageError

SMALL = Shape("small", 2, 512, 8, 4, 768, 3000, 512)
real = pytest.mark.skipif(can_emulate() is not None, reason=str(can_emulate()))


@pytest.fixture
def few_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper, "N_DEVICES", 4)
    monkeypatch.setitem(SHAPES, "small", SMALL)
    monkeypatch.setitem(paper.ROWS, "small", paper.Row("small", paper.Published(2.0, 1.0, 3.0)))


@real
@pytest.mark.parametrize("way", ["--real", pytest.param("--one-rank", marks=LONG_FORM)])
def test_a_row_has_all_that_the_paper_has(few_devices: None, tmp_path: Path, way: str) -> None:
    options = [
        "--rows",
        "small",
        "--window",
        "1MB",
        "--context",
        "256",
        "--pairs",
        "1",
        "--sums",
        "6",
        "--cpu",
        "0.4",
        way,
    ]
    [report] = paper.main([*options, "--work", str(tmp_path)])
    figures = json.loads(report.json())
    assert figures["first_token_s"] > 0.004 and figures["token_s"] > 4 * 0.001  # four sums
    assert 30e6 < figures["worker_peak_rss_bytes"] < 300e6 and 30e6 < figures["master_peak_rss_bytes"] < 300e6
    assert figures["sums"]
    if way == "--one-rank":
        assert 1.0 < figures["sum_ms"] < 100
        assert figures["first_token_over_bound"] > 1
        assert figures["first_token_bound_s"] >= figures["prompt_sums_bound_s"] > 0.004
    assert (figures["paper_token_s"], figures["paper_peak_rss_bytes"]) == (1.0, 3e9)
    assert figures["measured"] and figures["composed"]
    assert (figures["composed"] == "nothing") == (way == "--real")
    assert not list(tmp_path.glob("paper-*"))


@real
def test_sums_take_as_long_as_their_network() -> None:
    with Testbed([Device()] * 3, 0.004, 50e6) as bed:
        short, long = measure_sums(bed, [SumKind("star", 64), SumKind("star", 64_000)], n_rounds=8, gap_s=0.01).sums
    assert 0.008 <= short.wall_s < 0.030
    assert long.wall_s - short.wall_s > 2 * 2 * 128_000 / (50e6 / 8) * 0.9  # twice two payloads through one port
    assert 0 < short.cpu_s < 0.008


def test_every_row_has_a_shape() -> None:
    assert set(paper.ROWS) <= set(SHAPES)


@real
def test_unknown_rows_are_refused() -> None:
    with pytest.raises(UsageError, match=r"--rows llama-9: there are .*yi-34b"):
        list(paper.main(["--rows", "llama-9"]))
