"""A rank's memory: whatever shape a pass has, what was reserved at the start is enough, and results stay the same."""

import itertools
import mmap
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.unit.runtime.rigs import Nobody, make_model, make_pass, running
from tests.variants.all import SMALL
from tests.variants.made import write_made
from tpi.errors import KernelError, MemoryBudgetError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.partition import divide
from tpi.runtime import graphs
from tpi.runtime.folding import fold_of
from tpi.runtime.ggml.inputs import BatchShape, Group, Sight
from tpi.runtime.graphs import Graphs
from tpi.runtime.kvcache import CacheExtent, KvCache, bytes_for
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.weights.layout import lay_out

N_CELLS = 600


@pytest.mark.parametrize("max_tokens", [1, 2, 7, 64])
@pytest.mark.parametrize("piece_bytes", [7_000, 16_000_000])
def test_every_shape_fits_what_was_reserved(tmp_path: Path, max_tokens: int, piece_bytes: int) -> None:
    """Numbers of tokens, of cells and of sampled rows, graphs built in any order, more of them than are kept."""
    _, model = make_model(tmp_path / "model.gguf", piece_bytes=piece_bytes, n_ff=544, n_vocab=331, n_layers=1)
    with Workspace(model, RankSettings(max_tokens, N_CELLS, 2)) as space:
        before = space.compute.scratch_bytes
        shapes = [
            (block, BatchShape(n, ((0, Sight(n_kv)),)))
            for block in model.blocks
            for n in {1, 2, 3, 5, max_tokens // 2, max_tokens - 1, max_tokens}
            if 1 <= n <= max_tokens
            for n_kv in (256, 512, N_CELLS)
        ]
        Random(max_tokens).shuffle(shapes)
        for block, shape in shapes * 2:
            space.graphs.of(block, shape)
        intermediates = space.compute._lib.base.ggml_gallocr_get_buffer_size(space.compute._allocators[0], 0)
        assert intermediates <= before


def some_groups(model: RankModel, settings: RankSettings, window: int, runs: Sequence[int], of: Random) -> Sight:
    """As if every sequence looked at its own cells; neighbours with equally many rows at once, or not."""
    groups = list[Group]()
    for n_rows, some in itertools.groupby(runs):
        left = len(list(some))
        while left:
            n = of.randint(1, left)
            fold = fold_of(model.attention(window), settings, n, n_rows)
            groups.append(Group(n, n_rows, 64 * of.randint(1, 4), fold))
            left -= n
    return Sight(groups=tuple(groups))


@pytest.mark.parametrize("name", ["deltas", "windowed", "falcon-h1", "falcon-h1, normed", "lfm2"])
@pytest.mark.parametrize(("max_tokens", "n_parts"), [(16, 1), (128, 1), (128, 2)])
@pytest.mark.parametrize("is_reproducible", [False, True])
def test_any_company_fits_what_was_reserved(
    tmp_path: Path, name: str, max_tokens: int, n_parts: int, is_reproducible: bool
) -> None:
    """Runs of any lengths, of any of the sequences."""
    trained = Path(__file__).parents[2] / "trained" / f"{name}.gguf"
    gguf = read_gguf(write_made(tmp_path / "model.gguf", SMALL[name]()) if name in SMALL else trained)
    spec = read_spec(gguf, name)
    blocks = blocks_of(spec)
    partition, of = divide(blocks, (1, 1, 1)), Random(max_tokens)
    model = RankModel(spec, blocks, partition, 0, lay_out(blocks, partition, 0))
    settings = RankSettings(
        max_tokens, 5 * 512, 2, n_parts=n_parts, n_sequences=20, max_sampled=20, is_reproducible=is_reproducible
    )
    with Workspace(model, settings) as space:
        for _ in range(40):
            n_rows = of.choice([settings.part_tokens, of.randint(1, settings.part_tokens)])
            cuts = sorted(of.sample(range(1, n_rows), min(of.randint(0, 19), n_rows - 1)))
            runs = tuple(stop - start for start, stop in itertools.pairwise([0, *cuts, n_rows]))
            if of.random() < 0.5:
                runs = tuple(of.sample((*(1,) * (len(runs) - 1), n_rows - len(runs) + 1), len(runs)))
            seen = tuple((window, some_groups(model, settings, window, runs, of)) for window in model.windows)
            shape = BatchShape(n_rows, seen, runs)
            for block in model.blocks:
                if block.index in model.pieces_of and not block.is_head:
                    space.graphs.of(block, shape)


def test_a_rank_that_holds_nothing(tmp_path: Path) -> None:
    gguf, model = make_model(tmp_path / "model.gguf", weights=(1, 0), rank=1)
    assert model.pieces == () and not model.cache_extents(RankSettings(8, 64, 1))
    with running(gguf, model, RankSettings(8, 64, 1), Nobody()) as rank:
        assert rank.run(make_pass(model, 0, 8)) is None


def test_evicted_graphs_are_built_again_with_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf, model = make_model(tmp_path / "model.gguf")
    cuts = [3, 1, 5, 2, 1, 4, 3, 1, 1, 2, 5, 3]

    def run() -> list[np.ndarray]:
        results = []
        with running(gguf, model, RankSettings(5, 64, 1)) as rank:
            first = 0
            for n in cuts:
                logits = rank.run(make_pass(model, first, n))
                assert logits is not None
                results.append(logits.copy())
                first += n
            assert len(rank._workspace.graphs._graphs) <= graphs._GRAPHS_KEPT
        return results

    kept = run()
    monkeypatch.setattr(graphs, "_GRAPHS_KEPT", 1)
    monkeypatch.setattr(graphs, "_SHAPES_KEPT", 0)
    for one, two in zip(kept, run(), strict=True):
        assert np.array_equal(one, two)


def test_many_parts_make_one_graph(tmp_path: Path) -> None:
    """A block of hundreds of parts, as a large model's has on one device."""
    gguf, model = make_model(tmp_path / "model.gguf", piece_bytes=1200, n_layers=1)
    of_block = [sum(len(p.parts) for p in model.pieces if p.block == block.index) for block in model.blocks]
    assert max(of_block) > 600
    with running(gguf, model, RankSettings(4, 64, 1)) as rank:
        logits = rank.run(make_pass(model, 0, 4))
        assert logits is not None
        many = logits.copy()
    gguf, model = make_model(tmp_path / "model.gguf", n_layers=1)
    with running(gguf, model, RankSettings(4, 64, 1)) as rank:
        one = rank.run(make_pass(model, 0, 4))
        assert one is not None and one.std() > 0.5
        assert np.abs(many - one).max() < 2e-3


def test_unseen_cells_do_not_matter(tmp_path: Path) -> None:
    """What lies in cells behind the mask changes nothing, short of numbers that are not finite."""
    gguf, model = make_model(tmp_path / "model.gguf")
    results = []
    for pollute in (False, True):
        with running(gguf, model, RankSettings(8, 300, 1)) as rank:
            if pollute:
                rank.run(make_pass(model, 8, 8, seed=9))
            logits = rank.run(make_pass(model, 0, 8))
            assert logits is not None
            results.append(logits.copy())
    assert np.array_equal(results[0], results[1])


def test_closing_twice(tmp_path: Path) -> None:
    _, model = make_model(tmp_path / "model.gguf")
    space = Workspace(model, RankSettings(4, 64, 2))
    space.close()
    space.close()


def mapped_bytes() -> int:
    """The address space of this process; 0 where the kernel does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[0]) * mmap.PAGESIZE if path.exists() else 0


def test_threads_and_memory_are_freed_when_the_start_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while the error, and with it the workspace, is still there."""
    _, model = make_model(tmp_path / "model.gguf")
    failed: list[Graphs] = []

    def fail(graphs: Graphs) -> None:
        failed.append(graphs)
        raise KernelError("out of memory")

    monkeypatch.setattr(Graphs, "_reserve", fail)
    before = mapped_bytes()
    with pytest.raises(KernelError):
        Workspace(model, RankSettings(4, 1 << 20, 1))
    assert not failed[0].compute._threadpool and not failed[0].compute._allocators
    assert mapped_bytes() - before < 100_000_000 < bytes_for(model.cache_extents(RankSettings(4, 1 << 20, 1)))


def test_too_little_address_space_is_one_line(tmp_path: Path) -> None:
    _, model = make_model(tmp_path / "model.gguf")
    with pytest.raises(MemoryBudgetError, match="shorter context"):
        Workspace(model, RankSettings(1 << 16, 1 << 45, 1))


def test_the_cache_of_layers_without_heads_is_nothing() -> None:
    extents = {0: CacheExtent(64, 64, 32), 1: CacheExtent(0, 0, 32)}
    with KvCache(extents) as cache:
        assert len(cache._maps) == 1 and all(address % 4096 == 0 for address in cache.addresses(0))
        assert bytes_for(extents) == cache.n_bytes == 2 * 32 * 64 * 2
        assert [cache.written_bytes(n) for n in (0, 1, 32)] == [0, 2 * mmap.PAGESIZE, 2 * mmap.PAGESIZE]
    cache.close()


def test_a_cache_beyond_memory_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("tpi.runtime.kvcache.mmap.mmap", refuse)
    with pytest.raises(MemoryBudgetError, match=r"8,192 bytes of KV cache \(Cannot allocate memory\): use a shorter"):
        KvCache({0: CacheExtent(64, 64, 64)})
