"""One rank as the engine's runner of passes: no cluster, weights in memory. Called by tests only."""

from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tpi.cluster.allreduce.driver import Sums
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import model_of, read_spec
from tpi.model.partition import divide
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.logits import Row
from tpi.runtime.passes import Pass
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.retention import Retention
from tpi.runtime.workspace import Workspace
from tpi.testing.window import MemoryWindow
from tpi.weights.layout import lay_out


class LocalRunner:
    """Satisfies ``engine.runner.PassRunner``; a context manager. Remembers its passes."""

    def __init__(self, path: Path, settings: RankSettings, *, is_resident: bool = True) -> None:
        self._stack = ExitStack()
        gguf = read_gguf(path)
        self.spec, self.settings = read_spec(gguf, "test"), settings
        made = model_of(self.spec)
        partition = divide(made.blocks, (1,))
        pieces = lay_out(made.blocks, partition, 0)
        self.model = RankModel(self.spec, made.blocks, partition, 0, pieces, made.inputs)
        self.table = self._stack.enter_context(EmbeddingTable(gguf, self.spec))
        self.workspace = self._stack.enter_context(Workspace(self.model, settings))
        self.rank = Rank(self.workspace, MemoryWindow(gguf, pieces, None, is_resident), Sums(None, None))
        self.n_cells, self.max_tokens = settings.n_cells, settings.max_tokens
        self.is_staged, self.n_forgotten = False, 1
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

    def prepare(self) -> None:
        pass

    def cancel(self, pass_id: int) -> None:
        raise NotImplementedError

    def run(self, work: Pass) -> tuple[Row, ...]:
        logits = self.rank.run(work)
        self.passes.append(work)
        return () if logits is None else tuple(Row(row.copy()) for row in logits)

    def rest(self) -> tuple[Row, ...]:
        raise NotImplementedError
