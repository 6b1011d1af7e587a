"""The embedding table: rows read where they lie, made float32."""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.models import write_random_model
from tpi.errors import ModelFileError
from tpi.gguf.reader import read_gguf
from tpi.model.architectures import read_spec
from tpi.runtime.embedding import EmbeddingTable


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_K"])
def test_rows_of_the_table(tmp_path: Path, kind: str) -> None:
    path = write_random_model(tmp_path / "model.gguf", types={"token_embd": kind}, n_layers=1)
    model = read_gguf(path)
    tensor = model.tensors["token_embd.weight"]
    tokens = [0, 319, 7, 7]
    with EmbeddingTable(model, read_spec(model, "")) as table:
        rows = table.rows(tokens)
    assert rows.shape == (4, 256) and rows.dtype == np.float32
    assert np.array_equal(rows[2], rows[3]) and np.isfinite(rows).all() and rows.std() > 0.1
    data = np.frombuffer(path.read_bytes(), np.uint8)[tensor.offset : tensor.offset + tensor.n_bytes]
    stored = data.reshape(320, -1)[tokens]
    wanted = gguf.dequantize(stored, gguf.GGMLQuantizationType[kind]).reshape(4, 256)
    assert np.allclose(rows, wanted, atol=1e-6)


def test_no_tokens(tmp_path: Path) -> None:
    model = read_gguf(write_random_model(tmp_path / "model.gguf", n_layers=1))
    with EmbeddingTable(model, read_spec(model, "")) as table:
        assert table.rows([]).shape == (0, 256)
    table.close()


@pytest.mark.parametrize("token", [320, -1, 1 << 40])
def test_tokens_that_the_table_does_not_have(tmp_path: Path, token: int) -> None:
    """As when a file's tokenizer has more tokens than its embedding table."""
    model = read_gguf(write_random_model(tmp_path / "model.gguf", n_layers=1))
    with (
        EmbeddingTable(model, read_spec(model, "")) as table,
        pytest.raises(ModelFileError, match="for tokens 0 to 319, its tokenizer gives"),
    ):
        table.rows([3, token])


def test_a_file_that_shrinks_while_it_is_used(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", n_layers=1)
    model = read_gguf(path)
    with EmbeddingTable(model, read_spec(model, "")) as table:
        os.truncate(path, model.tensors["token_embd.weight"].offset + 100)
        with pytest.raises(ModelFileError, match="is truncated"):
            table.rows([0])


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    path = write_random_model(tmp_path / "model.gguf", n_layers=1)
    model = read_gguf(path)
    path.unlink()
    with pytest.raises(ModelFileError, match="cannot read"):
        EmbeddingTable(model, read_spec(model, ""))
