"""Slices of all ranks, put back together, are the model; for any shape, data type and shares."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.weights.helpers import FakeSource, Model, make_model
from tpi.errors import ModelFileError
from tpi.model.architectures import blocks_of
from tpi.model.spans import Span
from tpi.weights import slices
from tpi.weights.files import PAGE_BYTES
from tpi.weights.layout import PART_ALIGNMENT
from tpi.weights.patches import placed_patches, scatter
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard import open_shard, verify
from tpi.weights.slices import GgufSource

TYPES = ("F32", "F16", "BF16", "Q4_0", "Q5_1", "Q8_0", "IQ4_NL", "MXFP4", "Q2_K", "Q4_K", "Q6_K", "TQ2_0")


@st.composite
def dimensions(draw: st.DrawFn) -> dict[str, int]:
    group, n_kv_heads = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    return {
        "n_layers": draw(st.integers(1, 2)),
        "n_embd": 256 * draw(st.integers(1, 2)),
        "n_kv_heads": n_kv_heads,
        "n_heads": n_kv_heads * group,
        "head_dim": draw(st.sampled_from((32, 64, 128))) if n_kv_heads * group % 2 == 0 else 256,
        "n_ff": 256 * draw(st.integers(1, 4)),
        "n_vocab": draw(st.integers(290, 420)),
        "seed": draw(st.integers(0, 9)),
    }


def usable(sizes: dict[str, int]) -> dict[str, int]:
    """Rows of o must be whole blocks of the widest type, as they are in any real model."""
    while sizes["n_heads"] * sizes["head_dim"] % 256:
        sizes["head_dim"] *= 2
    return sizes


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=dimensions().map(usable),
    kinds=st.lists(st.sampled_from(TYPES), min_size=3, max_size=3),
    weights=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any),
    piece_bytes=st.integers(2_000, 200_000),
    tied=st.booleans(),
    split=st.sampled_from((None, 2)),
)
def test_slices_put_together_are_the_model(
    sizes: dict[str, int], kinds: list[str], weights: list[int], piece_bytes: int, tied: bool, split: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        types = {"*": kinds[0], "attn_output": kinds[1], "ffn_down": kinds[2], "token_embd": "Q8_0"}
        model = make_model(Path(folder), types, split, tied=tied, **sizes)
        partition = model.partition(*weights)
        rebuilt = {name: np.zeros_like(model.tensor(name)) for name in model.spec.tensors}
        seen = {name: np.zeros(array.shape, bool) for name, array in rebuilt.items()}
        for rank in range(len(weights)):
            pieces = model.pieces(partition, rank, piece_bytes)
            path = Path(folder) / f"{rank}.shard"
            with GgufSource(model.gguf) as source:
                shard = write_shard(path, model.header(partition, rank, piece_bytes), source).shard
            assert open_shard(path) == shard and shard.pieces == pieces
            verify(shard)
            data = path.read_bytes()
            assert len(data) % PAGE_BYTES == 0
            for piece in pieces:
                place = shard.file_offset(piece.index)
                assert place % PAGE_BYTES == 0
                assert piece.n_bytes <= piece_bytes or (len(piece.parts) == 1 and piece.parts[0].n_rows == 1)
                for part in piece.parts:
                    assert part.offset % PART_ALIGNMENT == 0
                    at = place + part.offset
                    values = np.frombuffer(data[at : at + part.n_bytes], np.uint8).reshape(part.n_rows, -1)
                    for placed in placed_patches(part):
                        here, whole = placed.patch, model.spec.tensors[part.tensor]
                        runs, rows = here.runs_in((Span(0, whole.n_columns),)), slice(here.rows.start, here.rows.stop)
                        held = values[placed.row : placed.row + here.rows.size]
                        scatter(held, runs, rebuilt[part.tensor][rows])
                        for run in runs:
                            seen[part.tensor][rows, run.start : run.stop] = True
        in_blocks = {slot.tensor.name for block in blocks_of(model.spec) for slot in block.slots}
        for name in in_blocks:
            assert seen[name].all(), name
            assert np.array_equal(rebuilt[name], model.tensor(name)), name


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return make_model(tmp_path)


@pytest.mark.parametrize("buffer_bytes", (1, 600, 1_000, 4_000_000))
def test_column_cuts_with_any_buffer(model: Model, monkeypatch: pytest.MonkeyPatch, buffer_bytes: int) -> None:
    monkeypatch.setattr(slices, "BUFFER_BYTES", buffer_bytes)
    partition, fake = model.partition(1, 2), FakeSource(model)
    with GgufSource(model.gguf) as source:
        for piece in model.pieces(partition, 1):
            for placed in (placed for part in piece.parts for placed in placed_patches(part)):
                expected, out = bytearray(placed.patch.n_bytes), bytearray(placed.patch.n_bytes)
                source.read(placed.patch, memoryview(out))
                fake.read(placed.patch, memoryview(expected))
                assert out == expected


def test_what_the_model_does_not_have_is_refused(model: Model) -> None:
    (placed,) = placed_patches(model.pieces(model.partition(1), 0)[0].parts[1])
    patch = placed.patch.with_rows(0, 257)
    with GgufSource(model.gguf) as source, pytest.raises(ModelFileError, match=patch.tensor):
        source.read(patch, memoryview(bytearray(patch.n_bytes)))
    source.close()


def test_a_file_that_shrinks_is_an_error(model: Model) -> None:
    (placed,) = placed_patches(model.pieces(model.partition(1), 0)[-1].parts[-1])
    path = model.gguf.paths[0]
    with GgufSource(model.gguf) as source:
        with path.open("r+b") as file:
            file.truncate(20_000)
        with pytest.raises(ModelFileError, match="truncated: it ends at byte"):
            source.read(placed.patch, memoryview(bytearray(placed.patch.n_bytes)))
