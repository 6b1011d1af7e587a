"""Folders whose matrices are quantised on the way: what is made of their files is quantised as files are."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.hubfolders import write_folder
from tests.models import dequantize, quantize
from tests.parity.hubtwins import RESULT
from tpi.hub.reader import read_model
from tpi.model.spans import Span
from tpi.runtime.ggml.quantize import quantized
from tpi.weights.modelfiles import ModelFiles
from tpi.weights.patches import Patch
from tpi.weights.slices import GgufSource

TWINS = json.loads(RESULT.read_text())


@pytest.mark.parametrize("name", TWINS)
def test_what_is_made_is_quantised(tmp_path: Path, name: str) -> None:
    folder = read_model(write_folder(tmp_path / "Tiny", TWINS[name]["config"], TWINS[name]["sources"]))
    model, n_changed = quantized(folder, "Q4_0"), 0
    with ModelFiles(folder) as files, GgufSource(model) as source:
        for tensor in model.tensors.values():
            plain = folder.tensors[tensor.name]
            if tensor == plain or tensor.type.name != "Q4_0":
                continue
            n_changed += 1
            rows = np.empty((plain.n_rows, plain.type.row_bytes(plain.n_columns)), np.uint8)
            files.read_rows(plain, 0, rows.data.cast("B"))
            whole = quantize(dequantize(rows, plain.type.name, plain.n_columns), "Q4_0")
            block, middle = tensor.type.block_bytes, tensor.n_columns // 64 * 32
            for columns, wanted in (
                (Span(0, tensor.n_columns), whole),
                (Span(middle, tensor.n_columns), whole[:, middle // 32 * block :]),
            ):
                made = np.empty(wanted.shape, np.uint8)
                source.read(Patch(tensor.name, tensor.type.id, Span(0, tensor.n_rows), (columns,)), made.data.cast("B"))
                assert np.array_equal(made, wanted), (tensor.name, columns)
    assert n_changed
