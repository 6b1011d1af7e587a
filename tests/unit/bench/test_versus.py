"""Comparisons with llama.cpp, on a small model."""

import importlib
import json
from pathlib import Path

import pytest

from bench.contender import Setup
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
    figures = json.loads(_add_rates(Report("decode"), "decode", rounds, 4).json())
    assert figures["rate_ratio"] > 0 and 0 < figures["outside_kernels_share"] < 1
    assert figures["llama_plain_tokens_per_s"] > 0


def test_a_side_that_ends_is_said(tmp_path: Path) -> None:
    with pytest.raises(TpiError, match="the process of tpi ended with 1"):
        Contender(Setup("tpi", str(tmp_path / "missing"), 1, 256, str(tmp_path)))


def test_every_measurement_can_be_asked_for_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, entry in NAMES.items():
        with pytest.raises(SystemExit):
            list(getattr(importlib.import_module(entry.module), entry.function)(["--help"]))
        assert f"bench {name}" in capsys.readouterr().out
