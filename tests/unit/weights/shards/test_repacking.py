"""Weights that were rearranged for this CPU, from the disk: products and passes are those of the plain ones."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.parity.rig import range_difference
from tests.parity.test_one_rank import BOUND
from tests.unit.runtime.rigs import Nobody, make_pass
from tests.unit.weights.helpers import Model, make_model
from tpi.model.architectures import blocks_of
from tpi.runtime.ggml.binding import TYPE_F32, Tensor
from tpi.runtime.ggml.compute import Compute
from tpi.runtime.ggml.probe_child import Example
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.testing.window import MemoryWindow
from tpi.weights.layout import Part
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.repacking import repacked_header, repacks
from tpi.weights.shards.shard import Shard, open_shard
from tpi.weights.slices import GgufSource
from tpi.weights.stored import stored_from_shard
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.window import Window

PIECE_BYTES = 60_000
TYPES = ("Q4_0", "Q4_K", "Q2_K", "IQ4_NL", "MXFP4", "Q8_0")
"""What kernels rearrange on one CPU or another."""


@dataclass
class Stocked:
    """A rank's shard and its rearranged copy, both read from the disk again."""

    model: Model
    repacker: Repacker
    plain: Shard
    repacked: Shard


@pytest.fixture(params=TYPES)
def stocked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stocked]:
    """The second of two ranks: rows and columns of its matrices are cut."""
    model = make_model(tmp_path, request.param, n_embd=512, n_heads=8, n_ff=1024, n_vocab=512)
    header = model.header(model.partition(1, 1), 1, PIECE_BYTES)
    with GgufSource(model.gguf) as source, Repacker() as repacker:
        plain = write_shard(tmp_path / "plain", header, source).shard
        if not any(repacks(repacker, part) for piece in plain.pieces for part in piece.parts):
            pytest.skip(f"no kernels for rearranged {request.param} on this CPU")
        head = repacked_header(header, plain.pieces, repacker)
        write_shard(tmp_path / "repacked", head, source, repacker=repacker)
        yield Stocked(model, repacker, open_shard(tmp_path / "plain"), open_shard(tmp_path / "repacked"))


def small_window(shard: Shard) -> Window:
    """A third of the shard at a time: most pieces stream."""
    stored = stored_from_shard(shard)
    return Window(stored, PieceReader(stored), max(Window.minimum_bytes(stored), stored.arena_bytes // 3))


def product(
    compute: Compute, part: Part, address: int, inputs: npt.NDArray[np.float32], repacker: Repacker | None
) -> npt.NDArray[np.float32]:
    """With the matrix that lies at ``address``: f32 [n_tokens, rows]."""
    with Example(compute) as example:
        weights = example.call("ggml_new_tensor_2d", part.type_id, part.n_columns, part.n_rows)
        Tensor.from_address(weights).data = address
        if repacker is not None:
            repacker.mark(weights)
        found = example.call("ggml_mul_mat", weights, example.tensor(TYPE_F32, part.n_columns, inputs))
        return example.result(found).reshape(len(inputs), part.n_rows)


def test_products_are_those_of_the_plain_shard(stocked: Stocked) -> None:
    repacker, random, n_packed = stocked.repacker, np.random.default_rng(7), 0
    assert stocked.repacked.header.repacking == repacker.name
    with small_window(stocked.plain) as plain, small_window(stocked.repacked) as repacked, Compute(1) as compute:
        for piece in stocked.plain.pieces * 2:
            with plain.hold(piece.index) as ours, repacked.hold(piece.index) as theirs:
                for part, here, there in zip(piece.parts, ours.part_addresses, theirs.part_addresses, strict=True):
                    if not repacks(repacker, part):
                        continue
                    n_packed += 1
                    read = [ctypes.string_at(address, part.n_bytes) for address in (here, there)]
                    assert read[0] != read[1], "rearranged"
                    for n_tokens in (1, 8):
                        inputs = random.standard_normal((n_tokens, part.n_columns), dtype=np.float32)
                        expected = product(compute, part, here, inputs, None)
                        found = product(compute, part, there, inputs, repacker)
                        assert range_difference(found, expected) <= BOUND
        assert plain.stats().streamed_bytes > 0 and repacked.stats().streamed_bytes > 0
    assert n_packed > 1


def test_passes_give_the_bits_of_weights_that_were_rearranged_in_memory(stocked: Stocked) -> None:
    pieces, header = stocked.repacked.pieces, stocked.repacked.header
    model = RankModel(stocked.model.spec, blocks_of(stocked.model.spec), header.partition, 1, pieces)
    logits = []
    with (
        Workspace(model, RankSettings(64, 128, 1), stocked.repacker) as workspace,
        small_window(stocked.repacked) as disk,
    ):
        for window in (MemoryWindow(stocked.model.gguf, pieces, stocked.repacker), disk):
            workspace.cache.forget()
            rank = Rank(workspace, window, Nobody())
            found = [rank.run(make_pass(model, first, n)) for first, n in ((0, 64), (64, 1))]
            rank.close()
            assert all(rows is not None for rows in found)
            logits.append([rows.copy() for rows in found if rows is not None][-1])
    assert np.array_equal(logits[0], logits[1])
