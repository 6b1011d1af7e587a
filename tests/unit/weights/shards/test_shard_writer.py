"""Writing shards: breaks are taken up again, full disks leave nothing behind."""

import errno
import multiprocessing
import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.weights.helpers import FakeSource, Model, check_content, flip, make_model
from tpi.errors import DiskSpaceError, LinkError, ModelFileError
from tpi.weights.shards.assemble import AssemblyReport, write_shard
from tpi.weights.shards.shard import verify
from tpi.weights.shards.shard_format import encode_start, layout_of
from tpi.weights.shards.shard_writer import ShardWriter


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"), n_ff=1536)


def test_a_broken_transfer_resumes_without_fetching_again(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "new" / "s"
    header = model.header(model.partition(1, 1), 0)
    pieces = layout_of(header).pieces
    total = sum(part.n_bytes for piece in pieces for part in piece.parts)
    fetched: list[int] = []
    for limit in (total // 3, total // 3, total):
        source = FakeSource(model, limit, LinkError("the master went away"))
        try:
            report: AssemblyReport | None = write_shard(path, header, source)
        except LinkError:
            assert not path.exists()
            report = None
        fetched.append(source.n_bytes)
    assert report is not None and report.resumed_bytes > 0 and report.reused_bytes == 0
    assert sum(fetched) <= total + 2 * 2 * max(piece.n_bytes for piece in pieces), "at most the broken pieces again"
    check_content(model, report.shard)
    verify(report.shard)
    assert [file.name for file in path.parent.iterdir()] == ["s"]


def test_finished_pieces_that_the_disk_lost_are_fetched_again(model: Model, tmp_path: Path) -> None:
    path, header = tmp_path / "s", model.header(model.partition(1, 1), 0)
    with ShardWriter(path, header) as writer:
        for piece in writer.layout.pieces[:5]:
            writer.write(memoryview(model.piece(piece)))
    layout = layout_of(header)
    flip(path.with_name("s.part"), len(encode_start(header, bytes(layout.n_sum_bytes))) + layout.offsets[3] + 10)
    with ShardWriter(path, header) as writer:
        assert writer.n_finished == 3
        for piece in layout.pieces[3:]:
            writer.write(memoryview(model.piece(piece)))
        check_content(model, writer.finish())


@pytest.mark.parametrize("keep", (0, 20, 31, 32, 50))
def test_a_cut_journal_only_costs_what_it_lost(model: Model, tmp_path: Path, keep: int) -> None:
    path, header = tmp_path / "s", model.header(model.partition(1, 1), 0)
    with ShardWriter(path, header) as writer:
        for piece in writer.layout.pieces[:5]:
            writer.write(memoryview(model.piece(piece)))
    os.truncate(path.with_name("s.journal"), keep)
    with ShardWriter(path, header) as writer:
        assert writer.n_finished == max(0, keep - 32) // 8
        for piece in writer.layout.pieces[writer.n_finished :]:
            writer.write(memoryview(model.piece(piece)))
        check_content(model, writer.finish())


def test_another_partition_starts_over(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "s"
    first, second = (model.header(model.partition(1, weight), 0) for weight in (1, 2))
    with ShardWriter(path, first) as writer:
        writer.write(memoryview(model.piece(writer.layout.pieces[0])))
    with ShardWriter(path, second) as writer:
        assert writer.n_finished == 0
    with ShardWriter(path, second), pytest.raises(ModelFileError, match="another process is writing"):
        ShardWriter(path, second)
    assert path.with_name("s.part").exists()


def test_too_little_space_is_said_before_anything_is_written(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass
    class State:
        f_bavail: int = 3
        f_frsize: int = 1000

    monkeypatch.setattr(os, "statvfs", lambda path: State())
    with pytest.raises(DiskSpaceError, match=r"needs [\d,]+ bytes more but its disk has 3,000 free"):
        write_shard(tmp_path / "s", model.header(model.partition(1), 0), FakeSource(model))
    assert list(tmp_path.iterdir()) == []


def fill_disk(model: Model, folder: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        write_shard(folder / "s", model.header(model.partition(1), 0), FakeSource(model))
    except DiskSpaceError as error:
        sys.exit(7 if "no room for the shard" in str(error) and "\n" not in str(error) else 8)


def test_a_disk_that_fills_leaves_nothing(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "full"
    process = multiprocessing.get_context("fork").Process(target=fill_disk, args=(model, folder))
    process.start()
    process.join(30)
    assert process.exitcode == 7
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_written(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ModelFileError, match=r"cannot write the shard .*: Read-only file system"):
        ShardWriter(tmp_path / "s", model.header(model.partition(1), 0))
