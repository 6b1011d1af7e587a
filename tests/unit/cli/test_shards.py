"""``tpi shards`` over folders that hold everything that can lie there."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.unit.weights.helpers import Model, make_model, used
from tests.unit.weights.shards.test_inventory import begin_shard, store_shard
from tpi.cli.figures import size
from tpi.cli.main import main
from tpi.runtime.ggml.repack import Repacker
from tpi.weights.shards.shard import Shard


class Stored:
    """A plain shard and a copy for these kernels in one device's folder, a copy for other kernels and an unfinished
    shard in another's."""

    def __init__(self, model: Model, home: Path) -> None:
        self.root = home / "shards"
        with Repacker() as repacker:
            here = repacker.name
        self.plain = store_shard(model, self.root / "attic")
        self.copy = store_shard(model, self.root / "attic", here)
        self.other = store_shard(model, self.root / "barn", "cpu-repack-old", rank=1)
        begin_shard(model, self.root / "barn")

    def files(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("*/*"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def stored(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    monkeypatch.setenv("TPI_HOME", str(tmp_path))
    return Stored(model, tmp_path)


def disk_bytes(shard: Shard) -> int:
    return shard.path.stat().st_blocks * 512


def listed(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["shards", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_nothing_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TPI_HOME", str(tmp_path / "none"))
    assert main(["shards"]) == 0
    assert capsys.readouterr().out == f"total: 0 B in {tmp_path / 'none' / 'shards'}\n"
    assert main(["shards", "prune", "--all"]) == 0
    assert capsys.readouterr().out == "freed 0 B\n"


def test_the_list(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    facts = listed(capsys)
    plain, copy = sorted((one for one in facts["shards"] if one["device"] == "attic"), key=lambda o: o["is_rearranged"])
    other, begun = sorted((one for one in facts["shards"] if one["device"] == "barn"), key=lambda one: one["state"])
    assert plain == {
        "device": "attic",
        "file": str(stored.plain.path),
        "model": "random model",
        "model_digest": stored.plain.header.spec.digest,
        "rank": 0,
        "n_ranks": 2,
        "disk_bytes": disk_bytes(stored.plain),
        "is_rearranged": False,
        "is_for_these_kernels": True,
        "state": "finished",
        "is_used": False,
        "written_s": stored.plain.path.stat().st_mtime,
    }
    assert (copy["is_rearranged"], copy["is_for_these_kernels"], copy["state"]) == (True, True, "finished")
    assert (other["is_rearranged"], other["is_for_these_kernels"], other["rank"]) == (True, False, 1)
    assert (begun["state"], begun["rank"], begun["model"]) == ("unfinished", None, "random model")
    assert facts["total_bytes"] == sum(one["disk_bytes"] for one in facts["shards"])


def test_the_list_for_people(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(stored.plain.path, (0, 86400 * 365))
    with used(stored.other.path):
        assert main(["shards"]) == 0
    head, *rows, total = capsys.readouterr().out.splitlines()
    assert head.split() == ["device", "model", "rank", "size", "order", "state", "written"]
    assert len(rows) == 4
    (plain,) = (row for row in rows if "plain" in row)
    assert plain.startswith("attic   random model  0 of 2  ") and "finished" in plain and "1971-01-01" in plain
    (other,) = (row for row in rows if "rearranged for other kernels" in row)
    assert other.startswith("barn    random model  1 of 2  ") and "finished, in use" in other
    assert total.startswith("total: ") and f"in {stored.root}; `tpi shards prune` would free " in total


def test_prune_removes_what_no_start_will_use(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    before = listed(capsys)["total_bytes"]
    kept = disk_bytes(stored.plain) + disk_bytes(stored.copy)
    names = stored.files()
    assert main(["shards", "prune", "--dry-run"]) == 0
    would = capsys.readouterr().out
    assert stored.files() == names
    assert main(["shards", "prune"]) == 0
    said = capsys.readouterr().out
    assert would == said.replace("removed", "would remove").replace("freed", "would free")
    assert [line.split()[0] for line in said.splitlines()] == ["removed", "removed", "freed"]
    assert f"removed {stored.other.path} (random model, rank 1 of 2, rearranged for other kernels, " in said
    assert ".part (random model, unfinished, " in said
    assert stored.files() == sorted([stored.plain.path.name, stored.copy.path.name])
    assert said.endswith(f"\nfreed {size(before - kept)}\n") and listed(capsys)["total_bytes"] == kept


def test_prune_all_keeps_what_is_used_and_says_so(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    with used(stored.copy.path):
        assert main(["shards", "prune", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines].count("removed") == 3
    (kept,) = (line for line in lines if line.startswith("kept "))
    assert str(stored.copy.path) in kept and kept.endswith(": it is in use")
    assert stored.files() == [stored.copy.path.name]


def test_files_that_cannot_be_read_go(stored: Stored, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = stored.root / "attic" / "damaged.tpishard"
    damaged.write_bytes(b"TPISHARD")
    assert "unreadable" in {one["state"] for one in listed(capsys)["shards"]}
    assert main(["shards", "prune"]) == 0
    assert not damaged.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--all"], "--all and --dry-run need prune"),
        (["--dry-run"], "--all and --dry-run need prune"),
        (["prune", "--json"], "--json is for the list"),
        (["tidy"], "tidy"),
    ],
)
def test_wrong_usage(stored: Stored, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    names = stored.files()
    assert main(["shards", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert stored.files() == names
