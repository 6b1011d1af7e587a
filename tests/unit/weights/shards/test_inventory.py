"""What folders of shards hold, who uses it, and what goes when room is made."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.weights.helpers import PIECE_BYTES, FakeSource, Model, make_model, used
from tpi.errors import LinkError
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.inventory import Entry, list_entries, try_remove
from tpi.weights.shards.shard import Shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.shards.shard_writer import ShardWriter
from tpi.weights.shards.store import ShardStore


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("model"))


def store_shard(
    model: Model, folder: Path, repacking: str = "", rank: int = 0, limit_bytes: int | None = None
) -> Shard:
    """A shard of one of two ranks in the folder; its bytes are the model's own whatever it says. Breaks off after
    ``limit_bytes``."""
    partition = model.partition(1, 1)
    pieces = model.pieces(partition, rank)
    path = ShardStore(folder).path_for(model.spec.digest, rank, pieces, repacking)
    source = FakeSource(model, limit_bytes, LinkError("broken"))
    marks = bytes(sum(len(piece.parts) for piece in pieces)) if repacking else b""
    return write_shard(path, ShardHeader(model.spec, partition, rank, PIECE_BYTES, repacking, (), marks), source).shard


def begin_shard(model: Model, folder: Path) -> None:
    with pytest.raises(LinkError):
        store_shard(model, folder, limit_bytes=100_000)


def names(entries: list[Entry]) -> list[str]:
    return [entry.path.name for entry in entries]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert list_entries(tmp_path / "none") == []


def test_finished_unfinished_and_unreadable_ones(model: Model, tmp_path: Path) -> None:
    shard = store_shard(model, tmp_path)
    note = shard.path.with_name(shard.path.name + ".disk")
    note.write_bytes(bytes(5000))
    begin_shard(model, tmp_path / "begun")
    (part,), (journal,) = (tmp_path / "begun").glob("*.part"), (tmp_path / "begun").glob("*.journal")
    (tmp_path / "begun" / "old.tpishard").write_bytes(b"TPISHARD\1\0\0\0")
    (tmp_path / "begun" / "diary.txt").write_text("mine")
    (finished,) = list_entries(tmp_path)
    assert (finished.is_finished, finished.shard, finished.files) == (True, shard, (shard.path, note))
    assert finished.n_bytes == 512 * (shard.path.stat().st_blocks + note.stat().st_blocks)
    assert finished.written_s == shard.path.stat().st_mtime
    unreadable, begun = list_entries(tmp_path / "begun")
    assert (unreadable.path.name, unreadable.is_finished, unreadable.shard) == ("old.tpishard", True, None)
    assert (begun.is_finished, begun.shard, begun.files) == (False, None, (part, journal))
    assert begun.model_key == finished.model_key and part.name.startswith(begun.model_key)
    assert try_remove(begun) and try_remove(unreadable) and try_remove(finished)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["diary.txt"]


def test_what_a_rank_of_another_process_reads_stays(model: Model, tmp_path: Path) -> None:
    shard = store_shard(model, tmp_path)
    (entry,) = list_entries(tmp_path)
    program = "import sys; from pathlib import Path; from tests.unit.weights.helpers import used\n"
    program += "with used(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", program, str(shard.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == b"\n"
        assert entry.is_used and not try_remove(entry) and shard.path.exists()
        reader.communicate()
    assert not entry.is_used and try_remove(entry) and not shard.path.exists()


def test_two_ranks_read_one_file(model: Model, tmp_path: Path) -> None:
    shard = store_shard(model, tmp_path)
    (entry,) = list_entries(tmp_path)
    with used(shard.path):
        with used(shard.path):
            assert entry.is_used
        assert entry.is_used
    assert not entry.is_used


def test_what_somebody_writes_stays(model: Model, tmp_path: Path) -> None:
    begin_shard(model, tmp_path)
    (entry,) = list_entries(tmp_path)
    assert not entry.is_used
    with ShardWriter(entry.path, model.header(model.partition(1, 1), 0)):
        assert entry.is_used and not try_remove(entry) and all(file.exists() for file in entry.files)
    assert try_remove(entry) and list_entries(tmp_path) == []
