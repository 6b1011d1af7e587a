"""Folders of model hubs against what llama.cpp's converter and transformers make of them (``hubtwins.json``)."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.hubfolders import write_folder
from tests.parity.hubtwins import RESULT, TOKENS
from tests.parity.rig import cluster_logits
from tpi.cluster.allreduce.driver import Sums
from tpi.gguf.reader import Gguf, GgufTensor
from tpi.gguf.types import TYPES_BY_NAME
from tpi.hub.reader import read_model
from tpi.model.architectures import model_of, read_spec
from tpi.weights.modelfiles import ModelFiles

TWINS: dict[str, Any] = json.loads(RESULT.read_text())
LOGITS_BOUND = 6e-2
"""Of their standard deviation: ours come from activations in 16 bits, transformers' from 32."""


def _folder(name: str, place: Path) -> Gguf:
    return read_model(write_folder(place / name, TWINS[name]["config"], TWINS[name]["sources"], n_files=2))


@pytest.mark.parametrize("name", TWINS)
def test_tensors_are_those_of_the_converter(name: str, tmp_path: Path) -> None:
    gguf, expected = _folder(name, tmp_path), TWINS[name]["twin"]["tensors"]
    found = {}
    with ModelFiles(gguf) as files:
        for tensor in gguf.tensors.values():
            data, row_bytes = bytearray(tensor.n_bytes), tensor.n_bytes // tensor.n_rows
            middle = tensor.n_rows * 2 // 3 | 1  # not between heads, nor experts
            files.read_rows(tensor, middle, memoryview(data)[middle * row_bytes :])
            files.read_rows(tensor, 0, memoryview(data)[: middle * row_bytes])
            digest = hashlib.sha256(data).hexdigest()[:16]
            found[tensor.name] = [tensor.type.name, tensor.n_columns, tensor.n_rows, digest]
    assert found == expected


@pytest.mark.parametrize("name", TWINS)
def test_the_model_is_that_of_the_converters_file(name: str, tmp_path: Path) -> None:
    gguf, twin = _folder(name, tmp_path), TWINS[name]["twin"]
    metadata = {key: tuple(value) if isinstance(value, list) else value for key, value in twin["metadata"].items()}
    tensors = {
        key: GgufTensor(key, TYPES_BY_NAME[kind], n_columns, n_rows)
        for key, (kind, n_columns, n_rows, _) in twin["tensors"].items()
    }
    expected = read_spec(Gguf(gguf.paths, metadata, {}, tensors, ""), "")
    spec = read_spec(gguf, "")
    assert spec.architecture == expected.architecture and spec.n_context_train == expected.n_context_train
    assert model_of(spec) == model_of(expected)


@pytest.mark.parametrize("name", TWINS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    (ours,) = cluster_logits(_folder(name, tmp_path).paths[0].parent, [TOKENS], [Sums(None, None)])
    theirs = np.array(TWINS[name]["logits"], np.float32)
    assert np.sqrt(np.mean((ours[-1] - theirs) ** 2)) < LOGITS_BOUND * theirs.std()
