"""Runs our ranks and llama.cpp over the same tokens and compares logits. Called by tests only."""

import re
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import llama_cpp
import numpy as np

from tpi.gguf.types import F16, TensorType
from tpi.hub.reader import read_model
from tpi.model.architectures import blocks_of, inputs_of, read_spec
from tpi.model.blocks import Block
from tpi.model.layout import divide_layers, parse_layout
from tpi.model.partition import Partition, divide
from tpi.model.spec import ModelSpec
from tpi.runtime.embedding import EmbeddingTable
from tpi.runtime.experts import Choices
from tpi.runtime.ggml.repack import Repacker
from tpi.runtime.passes import Pass
from tpi.runtime.protocols import Allreduce, Float32Array
from tpi.runtime.rank import Rank
from tpi.runtime.rankmodel import RankModel, RankSettings
from tpi.runtime.workspace import Workspace
from tpi.testing.window import MemoryWindow
from tpi.weights.layout import PIECE_BYTES, lay_out

LAYOUTS: tuple[tuple[float, ...] | str, ...] = (
    (1, 1),
    (3, 2, 2, 1),
    (0, 1),
    (1, 0, 0, 1),
    "0-1:0 2-3:1",
    "0:0 1:1 2:2 3:3 head:0",
    "0-3:1 head:0",
    "0:0 1-2:1,2 3:0,1,2 head:*",
    "0-1:0=3,1=1 2-3:2 head:0,2",
    "0-2:* 3:1 head:1,2",
)
"""Of models with four layers: every layer cut among ranks, some of which hold nothing; layers on ranks of their own,
the head with the last or elsewhere; and mixtures of these."""


def reference_logits(
    path: Path,
    chunks: Sequence[Sequence[int]],
    n_threads: int = 2,
    context: int = 512,
    *,
    repack: bool = False,
    kv_type: TensorType = F16,
) -> Float32Array:
    """llama.cpp's logits f32 [n_tokens, n_vocab] for the chunks, one pass each."""
    plain = llama_cpp.llama_model_default_params()
    plain.use_extra_bufts = repack
    with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", lambda: plain):
        model = llama_cpp.Llama(
            str(path),
            yarn_beta_fast=-1.0,  # as the file has it
            yarn_beta_slow=-1.0,
            n_ctx=context,
            n_batch=512,
            n_ubatch=512,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            logits_all=True,
            flash_attn=True,
            type_k=kv_type.id,
            type_v=kv_type.id,
            verbose=False,
        )
    try:
        for chunk in chunks:
            model.eval(list(chunk))
        return np.array(model.scores[: model.n_tokens], dtype=np.float32)
    finally:
        model.close()


def pass_of(table: EmbeddingTable, pass_id: int, first: int, tokens: Sequence[int]) -> Pass:
    """A pass of one sequence whose tokens lie in cells equal to their positions; all rows sampled."""
    positions = np.arange(first, first + len(tokens))
    return Pass(
        pass_id=pass_id,
        embeddings=table.rows(tokens),
        positions=positions.astype(np.int32),
        cells=positions.astype(np.int64),
        visible=np.arange(first + len(tokens))[None, :] <= positions[:, None],
        sampled=np.arange(len(tokens), dtype=np.int32),
    )


def count_ranks(shares: Sequence[float] | str) -> int:
    """How many devices the shares, or the text of a layout, are for."""
    return 1 + max(map(int, re.findall(r"[:,](\d+)", shares))) if isinstance(shares, str) else len(shares)


def make_partition(spec: ModelSpec, blocks: Sequence[Block], shares: Sequence[float] | str) -> Partition:
    """From shares, or from the text of a layout whose devices are ranks."""
    if not isinstance(shares, str):
        return divide(blocks, shares)
    n_ranks = count_ranks(shares)
    names = [f"device-{rank}" for rank in range(n_ranks)]
    return divide_layers(blocks, parse_layout(shares, spec.n_layers), names, [1.0] * n_ranks)


def cluster_logits(
    path: Path,
    chunks: Sequence[Sequence[int]],
    allreduces: Sequence[Allreduce],
    *,
    shares: Sequence[float] | str = (1,),
    n_threads: int = 2,
    context: int = 512,
    piece_bytes: int = PIECE_BYTES,
    repack: bool = False,
    is_resident: bool | Sequence[bool] = False,
    kv_type: TensorType = F16,
    release: Callable[[], None] = lambda: None,
    choices: Sequence[Choices | None] = (),
    n_parts: int = 1,
) -> list[Float32Array]:
    """Every rank's slice of the logits, f32 [n_tokens, its rows]: ranks as threads, windows in memory. ``shares``, or
    the text of a layout whose devices are ranks. ``choices``: of every rank who may change which experts it chooses."""
    gguf = read_model(path)
    spec = read_spec(gguf, "test")
    blocks = blocks_of(spec)
    partition = make_partition(spec, blocks, shares)
    ranks = range(partition.n_ranks)
    slices: list[list[Float32Array]] = [[] for _ in ranks]
    errors: list[BaseException] = []

    def work(rank: int) -> None:
        try:
            pieces = lay_out(blocks, partition, rank, piece_bytes)
            settings = RankSettings(max(map(len, chunks)), context, n_threads, kv_type, n_parts=n_parts)
            with ExitStack() as stack:
                table = stack.enter_context(EmbeddingTable(gguf, spec))
                repacker = stack.enter_context(Repacker()) if repack else None
                model = RankModel(spec, blocks, partition, rank, pieces, inputs_of(spec))
                workspace = stack.enter_context(Workspace(model, settings, repacker))
                resident = is_resident if isinstance(is_resident, bool) else is_resident[rank]
                window = MemoryWindow(gguf, pieces, repacker, resident)
                runner = Rank(workspace, window, allreduces[rank], choices=choices[rank] if choices else None)
                first = 0
                for number, chunk in enumerate(chunks):
                    logits = runner.run(pass_of(table, number, first, chunk))
                    empty = np.zeros((len(chunk), 0), np.float32)
                    slices[rank].append(empty if logits is None else logits.copy())
                    first += len(chunk)
        except BaseException as error:
            errors.append(error)
            release()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [np.concatenate(parts) for parts in slices]


def range_difference(ours: Float32Array, reference: Float32Array) -> float:
    """The largest difference as a part of the reference's range."""
    return float(np.abs(ours - reference).max() / (reference.max() - reference.min()))
