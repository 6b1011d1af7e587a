"""Ranks of this process as the engine's runner of passes, weights in memory. Called by tests only."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.mesh.datapath import with_streams
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import model_of, read_spec
from tpi.model.partition import divide
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import HASH_VALUES, RankModel, RankSettings
from tpi.runtime.retention import Retention
from tpi.runtime.workspace import Workspace
from tpi.testing.meshes import open_sums
from tpi.testing.window import MemoryWindow
from tpi.weights.layout import lay_out


class LocalRunner:
    """Satisfies ``engine.runner.PassRunner``; a context manager. Remembers its passes."""

    def __init__(
        self,
        path: Path,
        settings: RankSettings,
        *,
        is_resident: bool = True,
        repack: bool = False,
        shares: Sequence[float] = (1,),
        algorithm: str = "one-shot",
    ) -> None:
        """With several ``shares`` there are as many ranks, whose sums travel in 32 bits."""
        self._stack = ExitStack()
        gguf = read_gguf(path)
        self.spec, self.settings = read_spec(gguf, "test"), settings
        made = model_of(self.spec)
        partition = divide(made.blocks, shares)
        self.table = self._stack.enter_context(EmbeddingTable(gguf, self.spec))
        repacker = self._stack.enter_context(Repacker()) if repack else None
        sums = [Sums(None, None)]
        if len(shares) > 1:
            scale = Scale(PayloadFormat.F32, settings.max_tokens * (self.spec.n_embd + HASH_VALUES))
            sums = self._stack.enter_context(open_sums(len(shares), ALGORITHMS[algorithm], scale)).ends
        self.ranks, self.workspaces = list[Rank](), list[Workspace]()
        for number in reversed(range(len(shares))):
            pieces = lay_out(made.blocks, partition, number)
            self.model = RankModel(self.spec, made.blocks, partition, number, pieces, made.inputs)
            self.workspace = self._stack.enter_context(Workspace(self.model, settings, repacker))
            window = MemoryWindow(gguf, pieces, repacker, is_resident)
            self.workspaces.insert(0, self.workspace)
            self.ranks.insert(0, Rank(self.workspace, window, sums[number]))
        self._threads = self._stack.enter_context(ThreadPoolExecutor(len(shares)))
        self.n_cells, self.max_tokens = settings.n_cells, settings.max_tokens
        self.is_staged, self.n_forgotten = False, 1
        self.is_reproducible = settings.is_reproducible
        self.n_context = settings.n_cells
        self.max_sampled, self.n_sequences = settings.n_sampled, settings.n_sequences
        self.passes: list[Pass] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def retention(self) -> Retention:
        return Retention(self.model.blocks, self.settings)

    def check_alive(self) -> None:
        pass

    def prepare(self) -> None:
        pass

    def cancel(self, pass_id: int) -> None:
        """It goes on to its end."""

    def run(self, work: Pass) -> tuple[Row, ...]:
        self.passes.append(work)
        parts = [part for part in self._threads.map(lambda rank: rank.run(work), self.ranks) if part is not None]
        rows = tuple(Row(np.concatenate(rows)) for rows in zip(*parts, strict=True))
        return with_streams(rows, self.ranks[0].stream(len(rows))) if work.wanted.is_streamed else rows

    def rest(self) -> tuple[Row, ...]:
        raise NotImplementedError
