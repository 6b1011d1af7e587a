"""Experts from the disk: whatever the window holds of them, from those of one token to all, the logits are the same
bits. ``python -m tests.parity.test_expert_windows`` prints what each window reads."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.parity.rig import pass_of
from tests.variants.all import VARIANTS
from tests.variants.made import N_VOCAB, write_made
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.epoch.footprint import piece_sizes
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import model_of, read_spec
from tpi.model.partition import divide
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.protocols import Float32Array
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.weights.layout import lay_out
from tpi.weights.stored import stored_from_gguf
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.window import Window

NAMES = ("gpt-oss 20B MXFP4", "gemma4 26B-A4B", "deepseek2 V2-Lite", "qwen35moe 35B-A3B fused")
TOKENS = [int(token) for token in np.random.default_rng(5).integers(3, N_VOCAB, 80)]
N_PREFILL = 40


@dataclass(frozen=True)
class Ran:
    """What passes gave through a window of ``budget_bytes``, and what a single token made it read."""

    budget_bytes: int
    logits: Float32Array
    token_bytes: float
    hit_rate: float


def run(path: Path) -> Iterator[Ran]:
    """The same passes through windows of all sizes."""
    gguf = read_gguf(path)
    spec = read_spec(gguf, "")
    made = model_of(spec)
    partition = divide(made.blocks, (1,))
    pieces = lay_out(made.blocks, partition, 0, 1 << 20)
    model = RankModel(spec, made.blocks, partition, 0, pieces, made.inputs)
    stored = stored_from_gguf(gguf, pieces)
    sizes = piece_sizes(model, [piece.arena_bytes for piece in stored.pieces])
    for part in (0.0, 0.1, 0.4, 0.8, 1.0):
        budget = round(sizes.minimum_bytes + part * (sizes.total_bytes - sizes.minimum_bytes))
        logits: list[Float32Array] = []
        with (
            EmbeddingTable(gguf, spec) as table,
            Workspace(model, RankSettings(N_PREFILL, 256, 1)) as workspace,
            Window(stored, PieceReader(stored), budget, least_slots=model.least_slots) as window,
        ):
            rank, first = Rank(workspace, window, Sums(None, None)), 0
            for number, n_tokens in enumerate((N_PREFILL, *[1] * (len(TOKENS) - N_PREFILL))):
                if number == 1:
                    before = window.stats()
                made_logits = rank.run(pass_of(table, number, first, TOKENS[first : first + n_tokens]))
                assert made_logits is not None
                logits.append(made_logits.copy())
                first += n_tokens
            after, n_single = window.stats(), len(TOKENS) - N_PREFILL
        demanded = after.demanded - before.demanded
        hit_rate = (after.hits - before.hits) / demanded if demanded else 1.0
        token_bytes = (after.streamed_bytes - before.streamed_bytes) / n_single
        yield Ran(budget, np.concatenate(logits), token_bytes, hit_rate)


@pytest.mark.parametrize("name", NAMES)
def test_no_window_changes_a_bit(tmp_path: Path, name: str) -> None:
    ran = list(run(write_made(tmp_path / "model.gguf", VARIANTS[name](), "Q8_0")))
    assert all(np.array_equal(entry.logits, ran[-1].logits) for entry in ran)
    read = [entry.token_bytes for entry in ran]
    assert read == sorted(read, reverse=True) and read[-1] == 0, "more memory, less to read"


def main() -> None:
    """A line for every window."""
    for name in NAMES:
        with tempfile.TemporaryDirectory() as folder:
            for entry in run(write_made(Path(folder) / "model.gguf", VARIANTS[name](), "Q8_0")):
                figures = f"{entry.token_bytes / 1e6:7.2f} MB a token, {entry.hit_rate:4.0%} of experts were there"
                print(f"{name:28} window {entry.budget_bytes / 1e6:6.1f} MB: {figures}")


if __name__ == "__main__":
    main()
