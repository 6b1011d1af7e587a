"""The KV cache's memory: what was written can be forgotten, at once and for good."""

import mmap
import sys

import pytest

from tpi.gguf.types import TYPES_BY_NAME
from tpi.model.spans import Span
from tpi.observe import resident_bytes
from tpi.runtime.kvcache import CacheExtent, KvCache


def extents(widths: dict[int, int], n_cells: int) -> dict[int, CacheExtent]:
    """Keys and values of these widths."""
    return {block: CacheExtent(width, width, n_cells) for block, width in widths.items()}


def fill(cache: KvCache) -> None:
    for maps in cache._maps.values():
        for memory in maps:
            for start in range(0, len(memory), mmap.PAGESIZE):
                stop = min(start + mmap.PAGESIZE, len(memory))
                memory[start:stop] = b"\xff" * (stop - start)


def is_clear(cache: KvCache) -> bool:
    return not any(any(memory[:]) for maps in cache._maps.values() for memory in maps)


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize("platform", ["linux", "elsewhere"])
def test_everything_is_forgotten(kind: str, platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform == "elsewhere":
        monkeypatch.setattr("tpi.runtime.kvcache.sys.platform", "plan9")
    with KvCache(extents({0: 64, 1: 0, 2: 96}, 100), TYPES_BY_NAME[kind]) as cache:
        addresses = [cache.addresses(layer) for layer in (0, 2)]
        for _ in range(2):
            fill(cache)
            assert not is_clear(cache)
            cache.forget()
            assert is_clear(cache)
        assert [cache.addresses(layer) for layer in (0, 2)] == addresses, "graphs go on with the same memory"


@pytest.mark.parametrize("platform", ["linux", "elsewhere"])
def test_cells_before_the_first_that_is_forgotten_stay(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if platform == "elsewhere":
        monkeypatch.setattr("tpi.runtime.kvcache.sys.platform", "plan9")
    with KvCache(extents({0: 64, 1: 96}, 200)) as cache:
        for first in (200, 1000, 100, 33):
            fill(cache)
            cache.forget(first)
            for block, width in ((0, 64), (1, 96)):
                stay = min(200, first) * 2 * width
                for memory in cache._maps[block]:
                    assert memory[:stay] == b"\xff" * stay
                    start = -(-stay // mmap.PAGESIZE) * mmap.PAGESIZE
                    assert not any(memory[start:]), "whole pages behind are empty"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and other systems keep the memory")
def test_what_is_forgotten_takes_no_memory() -> None:
    n_bytes = 20 << 20
    n_cells = n_bytes // (2 * 64 * 2)
    with KvCache(extents({0: 64}, n_cells)) as cache:
        before = resident_bytes()
        fill(cache)
        assert resident_bytes() - before > n_bytes - 2_000_000
        cache.forget(n_cells // 2)
        assert abs(resident_bytes() - before - n_bytes // 2) < 2_000_000
        cache.forget()
        assert resident_bytes() - before < 2_000_000


def test_a_cache_of_nothing_forgets_nothing() -> None:
    cache = KvCache(extents({0: 0}, mmap.PAGESIZE))
    cache.forget()
    cache.close()
    cache.close()
    cache.forget()


def test_a_window_keeps_the_cells_that_it_has() -> None:
    """Rings hold the last positions of every sequence, wherever the pool's cells of these lie."""
    with KvCache({0: CacheExtent(2048, 2048, 192, is_ring=True), 1: CacheExtent(2048, 0, 256)}) as cache:
        assert cache.addresses(1)[0] == cache.addresses(1)[1], "values are part of the keys"
        assert cache.n_bytes == 192 * 2 * 4096 + 256 * 4096
        assert cache.written_bytes(100) == 192 * 2 * 4096 + 100 * 4096
        fill(cache)
        cache.forget(100)
        assert all(memory[:] == b"\xff" * len(memory) for memory in cache._maps[0])
        assert not any(cache._maps[1][0][100 * 4096 :])
        cache.zero(1, Span(60, 70))
        assert not any(cache._maps[1][0][60 * 4096 : 70 * 4096]) and all(cache._maps[0][0][60 * 4096 :])
