"""Vectors of texts: what each architecture's head would multiply, held to its logits; random weights."""

import asyncio
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from tests.parity.runner import LocalRunner
from tests.sequences import TokenSequence
from tests.variants.all import VARIANTS
from tests.variants.made import N_VOCAB, write_made
from tests.variants.qwen3 import qwen3
from tpi.api.vectors import Vectors
from tpi.api.waking import Waker
from tpi.api.workers import Workers
from tpi.engine.embedder import Embedder, Pooling
from tpi.engine.engine import Engine
from tpi.engine.language import Language
from tpi.errors import UnsupportedModelError, UsageError
from tpi.gguf.reader import read_gguf
from tpi.runtime.logits import Wanted
from tpi.runtime.rankmodel import RankSettings
from tpi.weights.files import open_for_reading, read_exactly

TEXT = np.random.default_rng(3).integers(3, N_VOCAB, 40).tolist()


def head_rows(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The output head, or the embedding table in its place, f32 [n_vocab, n_embd]; it is F16 here."""
    gguf = read_gguf(path)
    tensor = gguf.tensors.get("output.weight", gguf.tensors["token_embd.weight"])
    data = bytearray(tensor.n_bytes)
    with open(open_for_reading(path), "rb") as file:
        read_exactly(file.fileno(), path, tensor.offset, memoryview(data))
    return np.frombuffer(data, np.float16).reshape(tensor.n_rows, tensor.n_columns).astype(np.float32)


@pytest.mark.parametrize("variant", ["llama 3.2 1B", "command-r 35B", "gemma4 E2B", "olmo2 1B"])
def test_a_vector_times_the_head_is_the_logits(tmp_path: Path, variant: str) -> None:
    """But for what a head does to logits afterwards: that keeps their order."""
    path = write_made(tmp_path / "model.gguf", VARIANTS[variant]())
    settings = RankSettings(max_tokens=64, n_cells=64, n_threads=1)
    with LocalRunner(path, settings) as runner:
        sequence = TokenSequence(runner, runner.table)
        sequence.keep_prefix(TEXT)
        [*_, row] = sequence.prefill(TEXT, Wanted(is_streamed=True))
        assert row is not None
        embedder = Embedder(read_gguf(path), runner.spec)
        path = path.rename(tmp_path / "moved.gguf")  # what it needs of the file it has read
        vector = embedder.vector(runner.ranks[0].stream(1)[0])
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
    logits = head_rows(path) @ vector
    order, best = np.argsort(-logits), np.argsort(-row.values)
    assert np.corrcoef(logits, row.values)[0, 1] > 0.99 and order[0] == best[0]


TEXTS = ["w1 w2 w3", "w9", "w1 w2 w3 w4 " * 20, "w1 w2 w4"]


@pytest.mark.parametrize("kind", [Pooling.NONE, Pooling.MEAN, Pooling.CLS, Pooling.LAST])
@pytest.mark.parametrize("shares", [(1,), (2, 1)])
def test_vectors_are_llama_cpp_s(tmp_path: Path, kind: Pooling, shares: tuple[int, ...]) -> None:
    """Read in several passes, with others at once, and where texts begin alike."""
    made = qwen3(n_layers=2)
    made.entries |= {"pooling_type": int(kind)}
    path = write_made(tmp_path / "model.gguf", made)
    model = llama_cpp.Llama(str(path), embedding=True, n_ctx=256, n_threads=1, verbose=False)
    try:
        reference: list[Any] = [model.embed(text, normalize=kind is not Pooling.NONE) for text in TEXTS]
    finally:
        model.close()
    settings = RankSettings(64, 512, 1, n_sequences=3, max_sampled=8)
    with LocalRunner(path, settings, shares=shares) as runner, Engine(runner, Language(path)) as engine:
        engine.drive(lambda error: None)
        workers, waker = Workers(), Waker()
        vectors = Vectors(engine, workers, waker)
        texts = [vectors.tokens_of(text) for text in TEXTS]
        for _ in range(2):
            if kind is Pooling.NONE:
                found = asyncio.run(vectors.embed_tokens(texts, lambda _, rows: rows))
                n_most = (1 << 20) // runner.spec.n_embd
                with pytest.raises(UsageError, match=f"together, 2 more than the {n_most} whose vectors"):
                    asyncio.run(vectors.embed_tokens([[3], [4] * (n_most + 1)], lambda _, rows: rows))
                with pytest.raises(UnsupportedModelError, match="a vector of every token, and none of a text"):
                    asyncio.run(vectors.embed(texts))
            else:
                found = asyncio.run(vectors.embed(texts))
            for own, other in zip(found, reference, strict=True):
                wanted = np.array(other, np.float32)
                assert own.shape == wanted.shape and np.abs(own - wanted).max() < 2e-2 * np.abs(wanted).max()
        workers.close()
        waker.close()
