"""Files of saved prefixes: their bytes, and what is not taken for one."""

import os
import zlib
from pathlib import Path

import pytest

from tpi.cluster.prefixes.prefixfile import PrefixFile, remove_unfinished, write_prefix_file
from tpi.errors import ChecksumError, DiskSpaceError, ModelFileError, UsageError

GOLDEN = b"tpi-pfx\0" + bytes([1, 0, 0, 0, 3, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]) + b"HEA" + b"12345"


def read(path: Path, *sizes: int) -> tuple[bytes, list[bytes]]:
    views = [bytearray(size) for size in sizes]
    with PrefixFile(path) as file:
        file.read(map(memoryview, views))
        return file.header, [bytes(view) for view in views]


def test_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "one"
    n_bytes = write_prefix_file(path, b"HEA", 5, [b"12", memoryview(b"345")])
    content = path.read_bytes()
    assert content == GOLDEN + zlib.crc32(GOLDEN).to_bytes(4, "little") and n_bytes == len(content)
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    assert read(path, 1, 4) == (b"HEA", [b"1", b"2345"])
    with PrefixFile(path) as file:
        file.check()


def test_no_byte_can_be_another(tmp_path: Path) -> None:
    path = tmp_path / "one"
    write_prefix_file(path, b"HEA", 5, [b"12345"])
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        with pytest.raises((ModelFileError, ChecksumError)), PrefixFile(path) as file:
            file.check()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(ModelFileError), PrefixFile(path):
            pass
    path.write_bytes(content + b"x")
    with pytest.raises(ModelFileError, match="it has 37 bytes, not 36"), PrefixFile(path):
        pass


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "one"
    write_prefix_file(path, b"HEA", 5, [b"12345"])

    def fails() -> bytes:
        assert len(list(tmp_path.iterdir())) == 2, "what is being written"
        raise OSError(28, os.strerror(28))

    with pytest.raises(DiskSpaceError, match="cannot write one: No space left on device; free some space there"):
        write_prefix_file(path, b"HEA", 5, (fails() for _ in range(1)))
    (tmp_path / "three").write_bytes(b"tpi")
    with pytest.raises(UsageError, match="three is there, and is no saved text: choose another name"):
        write_prefix_file(tmp_path / "three", b"HEA", 5, [b"12345"])
    assert (tmp_path / "three").read_bytes() == b"tpi"
    (tmp_path / "three").unlink()
    assert [entry.name for entry in tmp_path.iterdir()] == ["one"] and read(path, 5)[1] == [b"12345"]
    with pytest.raises(ModelFileError, match=r"^cannot read two: No such file"):
        PrefixFile(tmp_path / "two")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    others = [tmp_path / name for name in ("one", ".one", ".one.part-x")]
    for path in others:
        path.touch()

    def look() -> bytes:
        [path] = set(tmp_path.iterdir()) - set(others)
        (tmp_path / f"{path.name}").with_stem(f"{path.stem}-2").touch()
        return b"12345"

    write_prefix_file(tmp_path / "two", b"HEA", 5, (look() for _ in range(1)))
    assert len(list(tmp_path.iterdir())) == 5
    remove_unfinished(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([*others, tmp_path / "two"])
    remove_unfinished(tmp_path / "none")
