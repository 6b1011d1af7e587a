"""``tpi shard`` and ``tpi inspect`` on small models."""

import json
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from tests.models import Q4_K_M, write_random_model
from tpi.cli.main import main
from tpi.gguf.reader import read_gguf
from tpi.weights.identity import model_digest
from tpi.weights.shards.shard import open_shard, verify


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_model(tmp_path_factory.mktemp("model") / "small.gguf", types=Q4_K_M, n_ff=1024)


@pytest.fixture
def shards(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Path]:
    assert main(["shard", str(model), "--ranks", "3", "--shares", "2,1,1", "--out", str(tmp_path / "out")]) == 0
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


def test_every_rank_gets_an_intact_shard(shards: list[Path]) -> None:
    assert [path.name for path in shards] == [f"small-rank{rank}-of-3.tpishard" for rank in range(3)]
    assert sorted(shards[0].parent.iterdir()) == shards
    for rank, path in enumerate(shards):
        shard = open_shard(path)
        verify(shard)
        assert (shard.header.rank, shard.header.partition.n_ranks) == (rank, 3)


def test_cutting_again_gives_the_same_bytes(shards: list[Path], model: Path) -> None:
    before = [path.read_bytes() for path in shards]
    assert main(["shard", str(model), "--ranks", "3", "--shares", "2,1,1", "--out", str(shards[0].parent)]) == 0
    assert [path.read_bytes() for path in shards] == before


def test_too_little_space_is_told_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 900, 100))
    assert main(["shard", str(model), "--ranks", "2", "--out", str(tmp_path / "out")]) == 1
    assert "has 100 B free" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--ranks", "2", "--shares", "1"], 2, "1 numbers for 2 devices"),
        (["--ranks", "2", "--shares", "0,0"], 2, "one above 0"),
        (["--ranks", "0"], 2, "--ranks"),
        (["--ranks", "65"], 2, "--ranks"),
    ],
)
def test_shard_with_wrong_numbers(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    assert main(["shard", str(model), *arguments, "--out", str(tmp_path / "out")]) == code
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_a_folder_that_cannot_be(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["shard", str(model), "--ranks", "1", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_inspect_a_model(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["architecture"], facts["layers"], facts["KV heads"]) == ("GGUF model", "llama", 2, 2)
    assert {"Q4_K", "Q6_K", "F32"} <= set(facts["types"])
    assert facts["units"]["head"] == ["10 of 32 rows"]
    assert facts["units"]["ffn"] == ["4 of 256 columns"]
    assert main(["inspect", str(model), "--verify"]) == 0
    lines = capsys.readouterr().out
    assert "ffn 4 of 256 columns" in lines and "no checksums" in lines


def test_inspect_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", "demo", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["name"]) == ("GGUF model", "tpi demo storyteller")
    command = [sys.executable, "-m", "tpi", "inspect", "demo", "--memory", "300MiB"]  # not with the tests' own memory
    assert "memory of rank 0 of 1" in subprocess.run(command, check=True, capture_output=True, text=True).stdout
    write_random_model(tmp_path / "demo")  # a file of that name comes first
    assert main(["inspect", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == ["demo"]


def test_inspect_a_shard(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shards[2]), "--json", "--verify"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["rank"], facts["ranks"]) == ("shard", 2, 3)
    assert facts["verified"] == "all checksums fit"
    assert 0.1 < facts["share"] < 0.3
    assert facts["file bytes"] == shards[2].stat().st_size


def test_a_flipped_byte_is_found_and_named(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    shard = open_shard(shards[1])
    place = shard.file_offset(1) + 100
    data = bytearray(shards[1].read_bytes())
    data[place] ^= 1
    shards[1].write_bytes(data)
    assert main(["inspect", str(shards[1])]) == 0
    assert main(["inspect", str(shards[1]), "--verify"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tpi: ") and "damaged in piece 1" in error and ".ffn_up.weight" in error


def test_a_model_that_cannot_be_computed_is_shown(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(
        model.read_bytes().replace(
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llama",
            b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0camel",
        )
    )
    assert main(["inspect", str(other)]) == 0
    assert "architecture 'camel' is not supported" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not a GGUF file"), (b"#!/bin/sh\n", "not a GGUF file"), (b"GGUF", "truncated"), (b"TPISHARD", "shard")],
)
def test_files_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    assert main(["inspect", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"tpi: {file}") and said in error and error.count("\n") == 1


def test_no_file_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(tmp_path / "missing")]) == 1
    assert main(["inspect", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 2


def test_a_model_is_read_once_for_its_digest(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not at all where the digest is of no use."""
    monkeypatch.setenv("TPI_HOME", str(tmp_path / "home"))
    kept = tmp_path / "home" / "cache" / "digests.json"
    assert main(["inspect", str(model), "--memory", "1GiB", "--no-repack"]) == 0
    assert not kept.exists()
    assert main(["inspect", str(model), "--json"]) == 0
    digest, inode = model_digest(read_gguf(model)), kept.stat().st_ino
    assert f'"digest": "{digest}"' in capsys.readouterr().out
    assert main(["shard", str(model), "--ranks", "1", "--out", str(tmp_path / "out")]) == 0
    assert kept.stat().st_ino == inode


def test_inspect_how_a_model_is_cut(model: Path, shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(model), "--shares", "2,1,1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [rank["bytes"] for rank in facts["ranks"]] == [
        sum(p.n_bytes for piece in open_shard(shard).pieces for p in piece.parts) for shard in shards
    ]
    assert sum(rank["share"] for rank in facts["ranks"]) == pytest.approx(1)
    n_vectors = {"attention": 2, "ffn": 2, "head": 1}
    assert facts["copied"].keys() == n_vectors.keys()
    assert facts["copied"]["ffn"] == 2 * 2 * 256 * 4, "two layers' norms, on two more ranks than one"
    assert main(["inspect", str(model), "--shares", "1,0,3"]) == 0
    first, second, _, last = capsys.readouterr().out.splitlines()
    assert first.startswith("rank 0  ") and "ffn columns 0 to 255; head rows 0 to " in first
    assert second.endswith("nothing")
    assert last.startswith("held more than once: attention ")


def test_inspect_how_a_shard_is_cut(shards: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shards[0]), "--ranks", "3"]) == 2
    assert "a shard is of one rank" in capsys.readouterr().err
