"""What a rank needs, counted before it is used; passes are cut shorter where memory is tight."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.runtime.rigs import make_model
from tpi.cluster.epoch.footprint import Claim, are_cheap, chunk_tokens, needs_of, pass_load
from tpi.gguf.types import TYPES_BY_NAME
from tpi.planner.memory import minimum_bytes
from tpi.runtime.passes import TILED_TOKENS
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace

SETTINGS = RankSettings(128, 512, 1, max_sampled=8)
PROCESS_BYTES = 50_000_000


def test_the_parts_are_those_of_the_rank(tmp_path: Path) -> None:
    _, alone = make_model(tmp_path / "model.gguf", n_embd=256, n_vocab=320)
    _, master = make_model(tmp_path / "model.gguf", weights=(1, 1))
    _, worker = make_model(tmp_path / "model.gguf", weights=(1, 1), rank=1)
    found = []
    for model in (alone, master, worker):
        with Workspace(model, SETTINGS) as workspace:
            found.append(needs_of(workspace, PROCESS_BYTES))
    one, first, second = found
    # Two layers, keys and values, 512 cells of two heads of 64 values of two bytes.
    assert one.kv_bytes == 2 * 2 * 512 * 2 * 64 * 2 == 2 * first.kv_bytes
    assert one.links_bytes == 0 and first.links_bytes > 2 * 128 * 256 * 4 and second.links_bytes > first.links_bytes
    # All of a row comes in 16 bits and is put together in 32.
    assert one.logits_bytes == 8 * 320 * 4 and first.logits_bytes == 8 * (320 * 4 + 160 * 2)
    assert second.logits_bytes == 8 * 160 * 2
    assert first.activations_bytes - second.activations_bytes == 128 * 256 * 4
    assert all(needs.graphs_bytes > 0 and needs.process_bytes == PROCESS_BYTES for needs in found)
    with Workspace(alone, RankSettings(128, 512, 1, TYPES_BY_NAME["Q8_0"])) as workspace:
        assert needs_of(workspace, PROCESS_BYTES).kv_bytes == one.kv_bytes * 34 // 64


def test_what_reproducible_rows_need(tmp_path: Path) -> None:
    """Rows of logits are sent in 32 bits, and what a row sees of its own cells is there once more."""
    reproducible = replace(SETTINGS, is_reproducible=True)
    for rank in (0, 1):
        _, model = make_model(tmp_path / "model.gguf", weights=(1, 1), rank=rank)
        with Workspace(model, SETTINGS) as usual, Workspace(model, reproducible) as workspace:
            less, more = needs_of(usual, PROCESS_BYTES), needs_of(workspace, PROCESS_BYTES)
            own = workspace.arrays.sights.n_bytes - usual.arrays.sights.n_bytes
        assert more.logits_bytes - less.logits_bytes == 8 * 160 * 2
        assert more.activations_bytes - less.activations_bytes == own + 128 * 512


def test_graphs_that_are_kept_are_counted(tmp_path: Path) -> None:
    """As many as may be kept, and the whole passes of a rank that is alone."""
    _, alone = make_model(tmp_path / "model.gguf")
    _, many = make_model(tmp_path / "model.gguf", weights=(1, 1))
    with Workspace(alone, SETTINGS) as one, Workspace(many, SETTINGS) as two:
        assert 32 * 10_000 < two.graphs.kept_bytes < one.graphs.kept_bytes < 32 * 40_000
        assert needs_of(two, 0).graphs_bytes == two.compute.scratch_bytes + two.graphs.kept_bytes


@pytest.mark.parametrize(("missing_bytes", "expected"), [(0, 128), (1, TILED_TOKENS)])
def test_passes_are_shorter_where_two_pieces_would_not_fit(tmp_path: Path, missing_bytes: int, expected: int) -> None:
    _, model = make_model(tmp_path / "model.gguf")
    with Workspace(model, SETTINGS) as workspace:
        enough = minimum_bytes(needs_of(workspace, PROCESS_BYTES), 2 * 4096)
    ample = Claim(model, [4096], PROCESS_BYTES, 1 << 40)
    tight = Claim(model, [1024, 4096], PROCESS_BYTES, enough - missing_bytes)
    assert chunk_tokens([ample], SETTINGS) == 128
    assert chunk_tokens([ample, tight], SETTINGS) == expected
    assert chunk_tokens([tight], RankSettings(20, 512, 1)) == 20


def least_bytes(model: RankModel, n_tokens: int) -> int:
    """A limit that leaves nothing for the window."""
    with Workspace(model, replace(SETTINGS, max_tokens=n_tokens)) as workspace:
        return minimum_bytes(needs_of(workspace, PROCESS_BYTES), 0)


def test_what_a_pass_reads_and_computes(tmp_path: Path) -> None:
    _, model = make_model(tmp_path / "model.gguf", weights=(1, 1), rank=1)
    *pieces, head = model.pieces
    assert len(pieces) == 4 and head.block == 4
    # Half of two layers: keys and values are as wide as half of the queries.
    matrices = 2 * (256 * 256 * (1 + 1 / 2 + 1 / 2 + 1) + 3 * 256 * 512) / 2
    vectors = 2 * 2 * 256
    sizes, least = [1000, 1000, 1000, 1000, 1000], least_bytes(model, 128)
    for room, window_limit, streamed in [
        (5000, None, 0), (4999, None, 4000), (3000, None, 3000), (5000, 3000, 3000), (-500, None, 4000), (5000, 1, 4000)
    ]:  # fmt: skip
        load = pass_load(Claim(model, sizes, PROCESS_BYTES, least + room, window_limit), SETTINGS)
        assert load.flop_per_token == 2 * (matrices + vectors)
        assert load.streamed_bytes <= streamed and (load.streamed_bytes > 0) == (streamed > 0)


def test_longer_passes_cost_little_or_are_not_had(tmp_path: Path) -> None:
    _, model = make_model(tmp_path / "model.gguf")
    least, longer = least_bytes(model, 128), least_bytes(model, 256)
    extra = longer - least

    def is_cheap(window_bytes: int, sizes: list[int], window_limit: int | None = None) -> bool:
        claim = Claim(model, sizes, PROCESS_BYTES, least + window_bytes, window_limit)
        return are_cheap([claim], SETTINGS, 256)

    assert extra > 0
    streaming = [extra] * 100
    assert is_cheap(20 * extra, streaming) and not is_cheap(20 * extra - 1, streaming)
    assert is_cheap(101 * extra, streaming), "all weights stay in memory"
    assert not is_cheap(101 * extra - 1, streaming), "some would not any more"
    assert not is_cheap(20 * extra, [10 * extra] * 10), "two pieces would not fit"
    assert is_cheap(4 * extra, streaming, 3 * extra) and not is_cheap(3 * extra, streaming, 3 * extra)
    ample = Claim(model, [4096], PROCESS_BYTES, 1 << 40)
    tight = Claim(model, streaming, PROCESS_BYTES, least + 3 * extra)
    assert are_cheap([ample], SETTINGS, 512) and not are_cheap([ample, tight], SETTINGS, 512)
