"""Vectors of texts: what each architecture's head would multiply, held to its logits; random weights."""

from pathlib import Path

import numpy as np
import pytest

from tests.architectures import N_VOCAB, VARIANTS, write_made
from tests.parity.runner import LocalRunner
from tests.sequences import TokenSequence
from tpi.engine.embedder import Embedder
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
        vector = Embedder(read_gguf(path), runner.spec).vector(runner.ranks[0].stream(1)[0])
    assert abs(float(np.linalg.norm(vector)) - 1) < 1e-5
    logits = head_rows(path) @ vector
    order, best = np.argsort(-logits), np.argsort(-row.values)
    assert np.corrcoef(logits, row.values)[0, 1] > 0.99 and order[0] == best[0]
