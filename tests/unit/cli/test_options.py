"""Texts of options to settings."""

from pathlib import Path

import pytest

from tpi.cli import options
from tpi.errors import UsageError


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "available_memory_bytes", lambda: 8_000)


@pytest.mark.usefixtures("free")
def test_memory_defaults_to_a_part_of_what_is_free() -> None:
    assert options.read_resources(None, None, 2).memory_bytes == 4_000
    assert options.read_resources(None, None, 2, n_devices=4, free_part=0.75).memory_bytes == 1_500


@pytest.mark.usefixtures("free")
def test_given_sizes_are_each_ranks_own() -> None:
    resources = options.read_resources("160MiB", "1MB", 3, n_devices=4)
    assert (resources.memory_bytes, resources.window_bytes, resources.n_threads) == (160 << 20, 1_000_000, 3)


@pytest.mark.parametrize(("memory", "window"), [("lots", None), ("0", None), ("1GiB", "0MB"), ("1GiB", "-1MB")])
def test_sizes_that_cannot_be(memory: str, window: str | None) -> None:
    with pytest.raises(UsageError, match=r"--memory|--window"):
        options.read_resources(memory, window, 1)


def test_shares_are_one_per_rank() -> None:
    assert options.read_shares(None, 4) is None
    assert options.read_shares("3,2,2,0", 4) == (3, 2, 2, 0)
    with pytest.raises(UsageError, match="3 numbers for 4 devices"):
        options.read_shares("3,2,2", 4)


def test_a_context_is_a_number_or_what_memory_allows() -> None:
    assert [options.read_context(text) for text in (None, "16", "4096", "auto")] == [None, 16, 4096, "auto"]


@pytest.mark.parametrize("text", ["", "15", "-1", "1048577", "9" * 5000, "2k", "most", "١٦"])
def test_contexts_that_cannot_be(text: str) -> None:
    with pytest.raises(UsageError, match=r"^--context '.{0,40}': write a number from 16 to 1048576, or auto$"):
        options.read_context(text)


@pytest.mark.parametrize(
    ("content", "raw", "said"),
    [
        (None, False, "system.txt: No such file or directory"),
        (b" \n", False, "system.txt: it is empty"),
        (b"\xff\xfe", False, "system.txt: it is not UTF-8"),
        (b"x" * ((1 << 22) + 1), False, "system.txt: it has 4,194,305 bytes, the limit is 4,194,304"),
        (b"Be brief.", True, "is the beginning of chats: leave out --raw"),
    ],
)
def test_what_cannot_be_pinned(tmp_path: Path, content: bytes | None, raw: bool, said: str) -> None:
    file = tmp_path / "system.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError, match=f"^--pin .*{said}$"):
        options.read_pinned(file, raw=raw)


def test_what_is_pinned(tmp_path: Path) -> None:
    assert options.read_pinned(None, raw=True) == ""
    (tmp_path / "system.txt").write_bytes(b"  Be brief.\n And kind. \r\n")
    assert options.read_pinned(tmp_path / "system.txt") == "  Be brief.\n And kind. "


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_n_cores", lambda: 12)
    assert [options.default_threads(n) for n in (1, 2, 4, 5, 12, 64)] == [8, 6, 3, 2, 1, 1]


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "é", "a" * 64])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        options.device_name(name)


def test_the_default_name_can_be_given() -> None:
    assert options.device_name(options.device_name(None)) == options.device_name(None)
