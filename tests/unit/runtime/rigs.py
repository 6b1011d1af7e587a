"""One rank over a small random model, with its weights in memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tests.models import write_random_model
from tpi.cluster.allreduce.driver import Sums
from tpi.gguf.reader import Gguf, read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.flow import Flow
from tpi.model.partition import divide
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Allreduce, Float32Array, SumStep
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.testing.window import MemoryWindow
from tpi.weights.layout import PIECE_BYTES, lay_out


def make_model(
    path: Path, weights: Sequence[float] = (1,), rank: int = 0, piece_bytes: int = PIECE_BYTES, **dimensions: int
) -> tuple[Gguf, RankModel]:
    gguf = read_gguf(write_random_model(path, **dimensions))  # type: ignore[arg-type]
    spec = read_spec(gguf, "test")
    blocks = blocks_of(spec)
    partition = divide(blocks, weights)
    return gguf, RankModel(spec, blocks, partition, rank, lay_out(blocks, partition, rank, piece_bytes))


def make_pass(
    model: RankModel, first: int, n_tokens: int, sampled: Sequence[int] | None = None, seed: int | None = None
) -> Pass:
    """Tokens in cells equal to their positions, embeddings at random but always the same; samples all rows if None."""
    table = np.random.default_rng(3 if seed is None else seed).standard_normal((2048, model.spec.n_embd))
    positions = np.arange(first, first + n_tokens)
    return Pass(
        pass_id=first + 1,
        embeddings=table[first : first + n_tokens].astype(np.float32),
        positions=positions.astype(np.int32),
        cells=positions.astype(np.int64),
        visible=np.arange(first + n_tokens)[None, :] <= positions[:, None],
        sampled=np.arange(n_tokens, dtype=np.int32) if sampled is None else np.asarray(sampled, np.int32),
    )


class Nobody:
    """An allreduce for ranks whose sums do not matter."""

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        if out is not None:
            out[:] = 0 if partial is None else partial

    def finish(self, step: SumStep) -> None:
        pass

    def native(self, flow: Flow, n_values: int) -> None:
        return None


class Alike(Nobody):
    """As if all ranks had made what this one has, experts chosen included."""

    def start(self, step: SumStep, partial: Float32Array | None, out: Float32Array | None) -> None:
        super().start(step, partial, out)
        if out is not None and not step.flow.is_handed_over:
            out *= len(step.flow.contributors)


@contextmanager
def running(
    gguf: Gguf, model: RankModel, settings: RankSettings, sums: Allreduce | None = None, is_resident: bool = False
) -> Iterator[Rank]:
    """``is_resident``: whole blocks run at once; otherwise piece by piece, as if they were streamed."""
    with Workspace(model, settings) as workspace:
        yield Rank(workspace, MemoryWindow(gguf, model.pieces, is_resident=is_resident), sums or Sums(None, None))
