"""Comparisons with llama.cpp, on a small model."""

import importlib
import json
from pathlib import Path

import pytest

from bench.contender import Setup, Took
from bench.contest import Contender
from bench.measurements import NAMES
from bench.models import RandomModel, write_gguf
from bench.report import Report
from bench.shapes import Shape
from bench.versus import KINDS, _add_rates, _compare
from tpi.cli.environment import find_folders
from tpi.errors import TpiError

SMALL = Shape("small", 2, 512, 8, 4, 768, 2000, 512)


def test_sides_take_the_same_tasks_in_turns(tmp_path: Path) -> None:
    path = write_gguf(RandomModel(SMALL, "q4_0"), tmp_path / "model.gguf")
    setups = [Setup(kind, str(path), 1, 256, str(find_folders().cache)) for kind in KINDS]
    rounds = _compare(setups, SMALL.n_vocab, n_prompt=20, n_tokens=4, n_rounds=2)
    assert len(rounds) == 2 and all(len(row) == 3 for row in rounds)
    for ours, *theirs in rounds:
        assert ours.compute_s is not None and 0 < ours.compute_s < ours.decode_s
        assert all(took.compute_s is None and took.decode_s > 0 for took in theirs)


def test_rates_are_medians_and_ratios_medians_of_rounds() -> None:
    """Three rounds: ours, llama.cpp, and that without repacking. Above 1 is faster than it."""
    seconds = [(2.0, 3.0, 8.0), (4.0, 4.0, 2.0), (1.0, 1.25, 5.0)]
    rounds = [
        [
            Took(2 * took, took, 0.75 * took if side == 0 else None, None, 100 + side, 90 + side)
            for side, took in enumerate(row)
        ]
        for row in seconds
    ]
    figures = json.loads(_add_rates(Report("decode"), "decode", rounds, 4).json())
    assert (figures["rate_ratio"], figures["plain_rate_ratio"]) == (1.25, 4.0)
    rates = [figures[f"{kind.replace('-', '_')}_tokens_per_s"] for kind in KINDS]
    assert rates == pytest.approx([2.0, 4 / 3, 0.8], rel=1e-5)
    assert figures["outside_kernels_share"] == 0.25 and figures["peak_rss_ratio"] == pytest.approx(100 / 101, rel=1e-5)
    assert (figures["anonymous_bytes"], figures["llama_anonymous_bytes"]) == (90, 91)
    figures = json.loads(_add_rates(Report("prefill"), "prefill", rounds, 4).json())
    assert (
        figures["rate_ratio"] == 1.25 and figures["tpi_tokens_per_s"] == 1.0 and "outside_kernels_share" not in figures
    )


def test_a_side_that_ends_is_said(tmp_path: Path) -> None:
    with pytest.raises(TpiError, match="the process of tpi ended with 1"):
        Contender(Setup("tpi", str(tmp_path / "missing"), 1, 256, str(tmp_path)))


def test_every_measurement_can_be_asked_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, entry in NAMES.items():
        with pytest.raises(SystemExit):
            list(getattr(importlib.import_module(entry.module), entry.function)(["--help"]))
        assert f"bench {name}" in capsys.readouterr().out
