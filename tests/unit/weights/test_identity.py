"""The digest names every byte, is computed once per state of a file, and can be computed while others wait."""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.unit.weights.helpers import make_model
from tpi.errors import Cancelled, ModelFileError
from tpi.gguf.reader import Gguf, read_gguf
from tpi.weights import identity
from tpi.weights.files import read_exactly
from tpi.weights.identity import Digesting, model_digest

BLOCK_BYTES = 4 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A model of about 9 MB: two whole blocks and a part of one."""
    path = make_model(tmp_path / "model", types="F16", n_layers=3, n_ff=1536).gguf.paths[0]
    assert 2 * BLOCK_BYTES < path.stat().st_size < 3 * BLOCK_BYTES
    return path


def read_bytes() -> int:
    """What this process has read until now."""
    lines = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(lines["rchar"])


def bytes_for_digest(gguf: Gguf, cache: Path) -> tuple[str, int]:
    """The digest, and how many bytes were read for it."""
    before = read_bytes()
    return model_digest(gguf, cache), read_bytes() - before


def overwrite(path: Path, place: int, data: bytes) -> None:
    """In place; the file's size stays, its times change."""
    before = path.stat()
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        with path.open("r+b") as file:
            file.seek(place)
            file.write(data)


def test_the_digest_is_what_the_module_says(path: Path) -> None:
    data = path.read_bytes()
    sums = [hashlib.sha256(data[place : place + BLOCK_BYTES]).digest() for place in range(0, len(data), BLOCK_BYTES)]
    expected = hashlib.sha256(b"".join([len(data).to_bytes(8, "little"), *sums])).hexdigest()
    assert model_digest(read_gguf(path)) == expected


def test_copies_are_equal_and_other_files_are_not(tmp_path: Path) -> None:
    first = make_model(tmp_path / "a").gguf
    digest = model_digest(first)
    assert len(digest) == 64 and digest == model_digest(make_model(tmp_path / "b").gguf), "a copy"
    assert digest != model_digest(make_model(tmp_path / "c", seed=1).gguf), "other weights of the same shape"
    split = make_model(tmp_path / "d", split=2).gguf
    assert len(split.paths) == 2 and digest != model_digest(split) == model_digest(split)
    with first.paths[0].open("ab") as file:
        file.write(b"\0")
    assert digest != model_digest(read_gguf(first.paths[0])), "another size"
    os.truncate(first.paths[0], 9_000)
    with pytest.raises(ModelFileError, match="truncated"):
        model_digest(first)


@pytest.mark.parametrize("part", [0.2, 0.5, 0.77, 1.0])
def test_64_bytes_that_differ_anywhere(path: Path, part: float) -> None:
    gguf = read_gguf(path)
    before, place = model_digest(gguf), int((path.stat().st_size - 64) * part)
    data = path.read_bytes()[place : place + 64]
    overwrite(path, place, bytes(byte ^ 255 for byte in data))
    assert model_digest(gguf) != before
    overwrite(path, place, data)
    assert model_digest(gguf) == before


def test_holes_are_zeros_and_are_not_read(path: Path, tmp_path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(BLOCK_BYTES - 1000)
        file.truncate(size)
    shutil.copyfile(path, tmp_path / "full")
    with (tmp_path / "full").open("r+b") as file:
        file.seek(BLOCK_BYTES - 1000)
        file.write(bytes(size - BLOCK_BYTES + 1000))
    assert path.stat().st_blocks * 512 < BLOCK_BYTES + 8192 and (tmp_path / "full").stat().st_blocks * 512 >= size
    hollow, n_read = bytes_for_digest(read_gguf(path), tmp_path / "cache")
    full, n_read_full = bytes_for_digest(read_gguf(tmp_path / "full"), tmp_path / "cache")
    assert hollow == full
    assert n_read < BLOCK_BYTES + 100_000 and n_read_full >= size


def touch(path: Path) -> None:
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))


def replace(path: Path) -> None:
    stat = path.stat()
    shutil.copyfile(path, path.with_name("new"))
    os.utime(path.with_name("new"), ns=(stat.st_atime_ns, stat.st_mtime_ns))
    path.with_name("new").replace(path)


def damage_with_old_times(path: Path) -> None:
    stat = path.stat()
    overwrite(path, 5_000_000, b"damaged!" * 8)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def lengthen(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 1)


@pytest.mark.parametrize(
    ("change", "is_other"), [(touch, False), (replace, False), (damage_with_old_times, True), (lengthen, True)]
)
def test_a_file_is_read_once_until_it_changes(
    path: Path, tmp_path: Path, change: Callable[[Path], None], is_other: bool
) -> None:
    gguf, cache, size = read_gguf(path), tmp_path / "cache", path.stat().st_size
    first, n_read = bytes_for_digest(gguf, cache)
    assert n_read >= size
    again, n_read = bytes_for_digest(gguf, cache)
    assert again == first and n_read < 20_000
    assert bytes_for_digest(read_gguf(path), tmp_path / "other")[1] >= size, "another cache"
    change(path)
    changed, n_read = bytes_for_digest(gguf, cache)
    assert n_read >= size and (changed != first) == is_other
    assert bytes_for_digest(gguf, cache)[1] < 20_000


@pytest.mark.parametrize("content", [b"", b"{}", b'[{"files": 3}]', b"\xff\xfe", b"[" * 5000])
def test_a_damaged_cache_costs_a_reading(path: Path, tmp_path: Path, content: bytes) -> None:
    gguf, cache = read_gguf(path), tmp_path / "cache"
    expected = model_digest(gguf, cache)
    (cache / "digests.json").write_bytes(content)
    digest, n_read = bytes_for_digest(gguf, cache)
    assert digest == expected and n_read >= path.stat().st_size
    assert bytes_for_digest(gguf, cache)[1] < 20_000
    assert [file.name for file in cache.iterdir()] == ["digests.json"]


def test_a_cache_that_cannot_be_written_is_no_error(path: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert model_digest(read_gguf(path), tmp_path / "file" / "cache") == model_digest(read_gguf(path))


def test_the_latest_64_are_kept(tmp_path: Path) -> None:
    gguf, cache = make_model(tmp_path).gguf, tmp_path / "cache"
    for _ in range(66):
        touch(gguf.paths[0])
        model_digest(gguf, cache)
    kept = msgspec.json.decode((cache / "digests.json").read_bytes())
    assert len(kept) == 64
    assert kept[-1]["files"][0]["modified_ns"] == gguf.paths[0].stat().st_mtime_ns


def test_a_file_that_changes_meanwhile_is_refused(path: Path, tmp_path: Path) -> None:
    def write(n_done: int, n_bytes: int) -> None:
        overwrite(path, 100_000, b"x")

    with pytest.raises(ModelFileError, match=r"model\.gguf was changed while it was read"):
        model_digest(read_gguf(path), tmp_path / "cache", write)
    assert not (tmp_path / "cache").exists()


def test_progress_counts_all_bytes_and_may_stop(path: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    model_digest(read_gguf(path), None, lambda *counts: told.append(counts))
    size = path.stat().st_size
    assert told == [(BLOCK_BYTES, size), (2 * BLOCK_BYTES, size), (size, size)]

    def stop(n_done: int, n_bytes: int) -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        model_digest(read_gguf(path), tmp_path / "cache", stop)
    assert not (tmp_path / "cache").exists()


def test_the_thread_gives_the_digest_or_its_error(path: Path, tmp_path: Path) -> None:
    gguf = read_gguf(path)
    with Digesting(gguf, tmp_path / "cache") as digesting:
        assert digesting.try_wait(20) == model_digest(gguf) == digesting.try_wait(0)
        assert digesting.n_done == digesting.n_bytes == path.stat().st_size
    path.unlink()
    with Digesting(gguf, tmp_path / "cache") as digesting, pytest.raises(ModelFileError, match=r"cannot read .*gguf"):
        digesting.try_wait(20)


def test_closing_ends_the_thread_after_a_block(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk: each block takes 0.2 s."""
    n_read: list[int] = []

    def read_slowly(descriptor: int, path: Path, offset: int, out: memoryview) -> None:
        time.sleep(0.2)
        n_read.append(offset)
        read_exactly(descriptor, path, offset, out)

    monkeypatch.setattr(identity, "read_exactly", read_slowly)
    with Digesting(read_gguf(path), tmp_path / "cache") as digesting:
        assert digesting.try_wait(0.01) is None
    digesting.close()
    assert len(n_read) == 1 and "tpi-digest" not in {thread.name for thread in threading.enumerate()}
