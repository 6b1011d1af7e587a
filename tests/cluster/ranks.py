"""N ranks as threads of one process, over real shard files with real windows. Called by tests and ``measure`` only."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.parity.rig import make_partition, pass_of
from tests.sequences import TokenSequence
from tpi.cluster.allreduce.algorithm import Scale
from tpi.cluster.allreduce.algorithms import ALGORITHMS
from tpi.cluster.allreduce.driver import Sums
from tpi.cluster.allreduce.payload import PayloadFormat
from tpi.cluster.cluster import Cluster
from tpi.cluster.master import Master
from tpi.config import Folders, MasterSettings, Resources
from tpi.engine.engine import Engine
from tpi.engine.language import Language
from tpi.engine.turns import ChatAsk, Message
from tpi.gguf.reader import Gguf, read_gguf
from tpi.model.architectures import blocks_of, read_spec
from tpi.model.blocks import Block
from tpi.model.partition import Partition
from tpi.model.spec import ModelSpec
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.protocols import Allreduce, Float32Array
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.testing.meshes import Connect, open_sums, socket_pair
from tpi.weights.identity import model_digest
from tpi.weights.layout import lay_out
from tpi.weights.shards.assemble import write_shard
from tpi.weights.shards.shard_format import ShardHeader
from tpi.weights.slices import GgufSource
from tpi.weights.stored import StoredWeights, stored_from_shard
from tpi.weights.streaming.disk import PieceReader
from tpi.weights.streaming.window import Window

CONTEXT = 512
DEMO = Path(__file__).parents[2] / "src" / "tpi" / "assets" / "demo.gguf"
PROMPTS = [
    f"Tell me a story about a {hero} and a {thing}."
    for hero, thing in [("fox", "lantern"), ("bear", "bell"), ("mouse", "boat"), ("owl", "kite"), ("cat", "drum")]
]

Budget = Callable[[StoredWeights], int]
"""The bytes of a rank's window."""


def smallest(stored: StoredWeights) -> int:
    """The smallest window that is possible: nothing is pinned, nothing is read ahead."""
    return Window.minimum_bytes(stored)


def half(stored: StoredWeights) -> int:
    """A window in which some pieces are pinned and the others stream."""
    return max(Window.minimum_bytes(stored), stored.arena_bytes // 2)


def everything(stored: StoredWeights) -> int:
    """A window in which all pieces are pinned."""
    return stored.arena_bytes


@dataclass(frozen=True)
class Cut:
    """A model cut for ``partition``: rank r's shard is ``stored[r]``."""

    gguf: Gguf
    spec: ModelSpec
    blocks: tuple[Block, ...]
    partition: Partition
    models: tuple[RankModel, ...]
    stored: tuple[StoredWeights, ...]

    @property
    def n_ranks(self) -> int:
        return self.partition.n_ranks


def cut(model: Path, shares: Sequence[float] | str, folder: Path) -> Cut:
    """Writes every rank's shard into ``folder``; ``shares``, or the text of a layout of ranks."""
    gguf = read_gguf(model)
    spec = read_spec(gguf, model_digest(gguf))
    blocks = blocks_of(spec)
    partition = make_partition(spec, blocks, shares)
    models, stored = [], []
    with GgufSource(gguf) as source:
        for rank in range(partition.n_ranks):
            pieces = lay_out(blocks, partition, rank)
            header = ShardHeader(spec, partition, rank)
            models.append(RankModel(spec, blocks, partition, rank, pieces))
            stored.append(stored_from_shard(write_shard(folder / f"{rank}.tpishard", header, source).shard))
    return Cut(gguf, spec, blocks, partition, tuple(models), tuple(stored))


@dataclass(frozen=True)
class Outcome:
    """Logits f32 [n_tokens, n_vocab], and how many bytes all ranks streamed for them."""

    logits: Float32Array
    streamed_bytes: int


def thread_run(
    model: Cut,
    chunks: Sequence[Sequence[int]],
    payload: PayloadFormat,
    budget: Budget,
    algorithm: str = "one-shot",
    connect: Connect = socket_pair,
    n_parts: int = 1,
) -> Outcome:
    """Runs the chunks, a pass each, over an allreduce between threads."""
    if model.n_ranks == 1:
        return run(model, chunks, [Sums(None, None)], budget)
    scale = Scale(payload, max(map(len, chunks)) * model.spec.n_embd, n_parts)
    few = 8 * model.spec.n_embd if n_parts > 1 else None
    with open_sums(model.n_ranks, ALGORITHMS[algorithm], scale, connect, few) as shared:
        return run(model, chunks, shared.ends, budget, shared.abort, n_parts)


def run(
    model: Cut,
    chunks: Sequence[Sequence[int]],
    ends: Sequence[Allreduce],
    budget: Budget,
    release: Callable[[], None] = lambda: None,
    n_parts: int = 1,
) -> Outcome:
    """Runs the chunks, a pass each, one thread per rank; ``release`` frees the other ranks when one fails."""
    slices: list[list[Float32Array]] = [[] for _ in ends]
    streamed = [0] * len(ends)
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            settings = RankSettings(max(map(len, chunks)), CONTEXT, 1, n_parts=n_parts)
            stored = model.stored[rank]
            with ExitStack() as stack:
                table = stack.enter_context(EmbeddingTable(model.gguf, model.spec))
                workspace = stack.enter_context(Workspace(model.models[rank], settings))
                window = stack.enter_context(Window(stored, PieceReader(stored), budget(stored)))
                runner = Rank(workspace, window, ends[rank])
                first = 0
                for number, chunk in enumerate(chunks):
                    logits = runner.run(pass_of(table, number, first, chunk))
                    empty = np.zeros((len(chunk), 0), np.float32)
                    slices[rank].append(empty if logits is None else logits.copy())
                    first += len(chunk)
                streamed[rank] = window.stats().streamed_bytes
        except BaseException as error:
            errors.append(error)
            release()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(ends))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Outcome(np.concatenate([np.concatenate(parts) for parts in slices], axis=1), sum(streamed))


@dataclass(frozen=True)
class Story:
    """A question, its tokens in the model's chat form, and what one rank answers greedily."""

    question: str
    prompt: list[int]
    answer: list[int]

    @property
    def chunks(self) -> list[list[int]]:
        """As the engine runs them: the prompt in one pass, then token by token. The last token needs no pass."""
        return [self.prompt, *([token] for token in self.answer[:-1])]

    @property
    def answering(self) -> slice:
        """The rows of logits from which the answer's tokens come."""
        return slice(len(self.prompt) - 1, None)


@contextmanager
def one_device(model: Path, folder: Path) -> Iterator[Cluster]:
    """The product's cluster of this process alone."""
    folders = Folders(folder / "state", folder / "shards", folder / "cache")
    settings = MasterSettings(model, folders, Resources(), context=CONTEXT, bind="127.0.0.1", port=0)
    with Master(settings) as master, master.form(lambda event: None) as cluster:
        yield cluster


def tell_story(model: Path, folder: Path, n_tokens: int) -> Story:
    """A story of ``n_tokens`` that one device tells, for the first prompt whose story is so long."""
    with Language(model) as language, one_device(model, folder) as cluster, Engine(cluster, language) as engine:
        for text in PROMPTS:
            prompt = list(engine.chat_prompt(ChatAsk((Message("user", text),))).tokens)
            answer = greedy(cluster, model, prompt, n_tokens)
            if not any(engine.vocabulary.is_end_of_generation(token) for token in answer):
                return Story(text, prompt, answer)
    raise AssertionError(f"no story of {n_tokens} tokens: give other prompts")


def greedy(cluster: Cluster, model: Path, prompt: Sequence[int], n_tokens: int) -> list[int]:
    """The most probable tokens after ``prompt``, one after the other."""
    tokens: list[int] = []
    with EmbeddingTable(read_gguf(model), cluster.spec) as table:
        sequence = TokenSequence(cluster, table)
        sequence.keep_prefix(prompt[:1])
        row = [part for part in sequence.prefill(prompt) if part is not None][-1]
        while True:
            tokens.append(row.best())
            if len(tokens) == n_tokens:
                return tokens
            row = sequence.run(tokens[-1:])[0]


def forced(cluster: Cluster, model: Path, story: Story) -> Float32Array:
    """The cluster's logits f32 [n_tokens, n_vocab] where the story's answer comes, its tokens fed one by one."""
    with EmbeddingTable(read_gguf(model), cluster.spec) as table:
        sequence = TokenSequence(cluster, table)
        sequence.keep_prefix(story.prompt[:1])
        rows = [part for part in sequence.prefill(story.prompt) if part is not None]
        rows += [sequence.run([token])[0] for token in story.answer[:-1]]
    return np.stack([row.values for row in rows])


@dataclass(frozen=True)
class Difference:
    """Two runs' logits of the same tokens, compared: the largest difference as part of the reference's range; where
    the greedy token differs; and for the worst of these, the gap between the reference's two best as part of what it
    may be, twice the difference there (0 if none differs)."""

    of_range: float
    positions: tuple[int, ...]
    gap_of_allowed: float


def compare(logits: Float32Array, reference: Float32Array) -> Difference:
    """``logits`` against ``reference``, f32 [n_tokens, n_vocab] both."""
    assert logits.shape == reference.shape
    apart = np.abs(logits - reference)
    positions = np.flatnonzero(logits.argmax(axis=1) != reference.argmax(axis=1))
    gaps = [top_gap(reference[position]) / (2 * float(apart[position].max())) for position in positions]
    of_range = float(apart.max() / (reference.max() - reference.min()))
    return Difference(of_range, tuple(int(position) for position in positions), max(gaps, default=0.0))


def top_gap(row: Float32Array) -> float:
    """How much more the best token of ``row`` has than the second."""
    second, best = np.partition(row, -2)[-2:]
    return float(best - second)
