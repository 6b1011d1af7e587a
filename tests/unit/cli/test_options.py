"""Texts of options to settings."""

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


def test_ranks_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_n_cores", lambda: 12)
    assert [options.default_threads(n) for n in (1, 2, 4, 5, 12, 64)] == [8, 6, 3, 2, 1, 1]


@pytest.mark.parametrize("name", ["", "-x", "a b", "a\n", "é", "a" * 64])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(UsageError, match="--name"):
        options.device_name(name)


def test_the_default_name_can_be_given() -> None:
    assert options.device_name(options.device_name(None)) == options.device_name(None)
