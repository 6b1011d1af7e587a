"""A real master with one real worker among stand-ins, on a small model; and what is refused before that."""

import json
from pathlib import Path

import pytest

from bench import rank
from bench.models import RandomModel, write_rank
from bench.shapes import SHAPES, Shape
from bench.testbed.testbed import can_emulate
from bench.window import rank_path
from tpi.errors import DiskSpaceError, UsageError

SMALL = Shape("small", 4, 512, 8, 4, 2048, 3000, 512)


@pytest.mark.parametrize(
    "is_emulated",
    [pytest.param(True, marks=pytest.mark.skipif(can_emulate() is not None, reason=str(can_emulate()))), False],
)
def test_both_ranks_are_real_and_every_cell_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_emulated: bool
) -> None:
    monkeypatch.setitem(SHAPES, "small", SMALL)
    options = ["--shape", "small", "--quant", "bf16", "--kv-type", "q8_0", "--devices", "3", "--worker", "2"]
    options += ["--context", "128", "--window", "3MB", "--work", str(tmp_path)]
    options += ["--mbps", "300"] if is_emulated else []
    [report] = rank.main(options)
    figures = json.loads(report.json())
    assert figures["written_cells"] == figures["context"] == 128
    assert (figures["prompt_tokens"], figures["tokens"], figures["kv_type"]) == (120, 9, "Q8_0")
    assert all(30e6 < figures[f"{who}_peak_rss_bytes"] < 300e6 for who in ("master", "worker"))
    assert figures["mbps"] == (300 if is_emulated else None)
    assert 0 < figures["joining_s"] < figures["load_s"]
    assert figures["time_to_first_token_s"] > 0 and figures["decode_tokens_per_s"] > 0
    kept = {path.name for path in tmp_path.glob("*.tpishard")}
    assert kept == {rank_path(RandomModel(SMALL, "bf16"), number, 3, tmp_path).name for number in (0, 2)}
    assert not list(tmp_path.glob("rank-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", "1"], "--devices 1"),
        (["--worker", "0"], "--worker 0"),
        (["--devices", "4", "--worker", "4"], "the workers are 1 to 3"),
        (["--prefill", "1"], "--prefill must be 2 or more"),
        (["--context", "64", "--prefill", "64"], "must have room"),
        (["--context", "8"], "--prefill must be 2 or more"),
        (["--shape", "small-9"], "is not known"),
        (["--quant", "q9"], "is not known"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        list(rank.main([*options, "--work", str(tmp_path)]))


def test_a_disk_without_room_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SHAPES, "small", Shape("small", 80, 1 << 20, 64, 8, 1 << 22, 32000, 4096))
    with pytest.raises(DiskSpaceError, match=r"2 shards of small in bf16 take .* GB: free some"):
        list(rank.main(["--shape", "small", "--quant", "bf16", "--work", str(tmp_path)]))
    assert not list(tmp_path.glob("small*"))


def test_only_missing_shards_need_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, ranks = RandomModel(SMALL, "q4_0"), rank.Ranks(2, 1)
    monkeypatch.setattr(rank.shutil, "disk_usage", lambda _: rank.shutil._ntuple_diskusage(0, 0, 0))  # type: ignore[attr-defined]
    for number in ranks.real:
        with pytest.raises(DiskSpaceError):
            rank._require_room(model, ranks, tmp_path)
        write_rank(model, number, (1.0, 1.0), rank_path(model, number, 2, tmp_path))
    rank._require_room(model, ranks, tmp_path)
