"""Slices of tensors that are far larger than the memory that making them takes."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from tests.hubfolders import write_folder
from tests.unit.hub.test_folder import CONFIG, _sources
from tpi.gguf.types import TYPES_BY_NAME
from tpi.hub.reader import read_model
from tpi.model.spans import Span
from tpi.weights.patches import Patch
from tpi.weights.slices import GgufSource

ROWS, COLUMNS = 6144, 8192
LIMIT_BYTES = 24_000_000
NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One matrix of 50 MB in 8 bits, 100 MB as BF16, which lies in a hole of its file."""
    path = write_folder(tmp_path, CONFIG, {name: entry for name, entry in _sources().items() if name != NAME})
    hole, scales = tmp_path / "hole.safetensors", tmp_path / "model.safetensors"
    shape = {"dtype": "F8_E4M3", "shape": [ROWS, COLUMNS], "data_offsets": [0, ROWS * COLUMNS]}
    n_scales = ROWS // 128 * (COLUMNS // 128)
    end = ROWS * COLUMNS + 4 * n_scales
    blocks = {"dtype": "F32", "shape": [ROWS // 128, COLUMNS // 128], "data_offsets": [ROWS * COLUMNS, end]}
    header = json.dumps({NAME: shape, f"{NAME}_scale_inv": blocks}).encode()
    with hole.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
        file.seek(8 + len(header) + ROWS * COLUMNS)
        file.write(np.ones(n_scales, np.float32).tobytes())
    held = json.loads(scales.read_bytes()[8 : 8 + int.from_bytes(scales.read_bytes()[:8], "little")])
    places = dict.fromkeys(held, scales.name) | {NAME: hole.name, f"{NAME}_scale_inv": hole.name}
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (path / "config.json").write_text(json.dumps({**CONFIG, **config}))
    return path


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(Span(0, ROWS), Span(1024, 1088)), (Span(ROWS // 2, ROWS // 2 + 200), Span(0, COLUMNS))],
)
def test_slices_of_a_large_matrix_take_little_memory(rows: Span, columns: Span, folder: Path) -> None:
    patch = Patch("blk.0.ffn_down.weight", TYPES_BY_NAME["BF16"].id, rows, (columns,))
    out = bytearray(b"\1" * patch.n_bytes)
    tracemalloc.start()
    try:
        with GgufSource(read_model(folder)) as source:
            source.read(patch, memoryview(out))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not any(out) and peak < LIMIT_BYTES
